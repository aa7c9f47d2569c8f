"""The oracles of METHODS.md 6 as a function: is the extractor right on this very model?

    certificate = interp.validate.certify(vlm)     # raises NotCertified, naming check and layer

A test-suite shows that the package is right on the models that it tests. What is trained or
explained is another model, in another dtype, with another attention implementation and an adapter:
`certify` runs the same oracles on that one, against its own forward passes, against a naive
computation that forms every written vector, and against TransformerLens.
"""

from interp.validate.certificate import Certificate, NotCertified, certify

__all__ = ["Certificate", "NotCertified", "certify"]
