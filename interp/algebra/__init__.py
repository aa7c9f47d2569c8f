"""The equations of METHODS.md, a file per section: tensors in, tensors out."""
