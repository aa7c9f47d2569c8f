"""Sentences beside the numbers of a page: which question each answers, and which it does not."""

KINDS = {
    "direct": (
        "Direct contribution (Eq. 1)",
        "what attention heads write from each patch straight into the token's logit",
        "nothing of it goes through FFNs, later layers or other tokens; it is no effect: where the "
        "patch is taken away, others may step in",
    ),
    "bottleneck": (
        "Bottleneck (Saliency-R1)",
        "Eq. 1 with the attention of the token's row to the thinking text, times that text's "
        "attention to the patch, in the same layer and head",
        "no computation of the model has this form; it is not an effect",
    ),
    "two_hop": (
        "Two hops",
        "from a patch to a thinking token in one layer, on to the token in a later one, by "
        "attention alone",
        "FFNs between the hops are left out; it is not an effect",
    ),
    "effect": (
        "Effect, integrated first order",
        "what the logit loses as the token's row stops reading a patch; the patches sum to the "
        "effect of cutting all of them together, but for value biases",
        "other tokens still read the patch",
    ),
    "edge": (
        "Effect, exact edges",
        "what the logit loses when the token's row cannot read this one patch",
        "patches do not sum to the effect of all; other tokens still read the patch",
    ),
    "slot": (
        "Effect, exact slots",
        "what the logit loses when the token's row reads this patch's key and value from another "
        "image",
        "patches do not sum to the effect of all; other tokens read the patch as it was",
    ),
    "pixels": (
        "Effect of the pixels",
        "what the logit loses when the patch's pixels are another image's, before the vision tower",
        "the tower mixes patches, so that neighbours change too; the text is held fixed",
    ),
    "vector": (
        "Effect of the vector",
        "what the logit loses when the patch's vector behind the tower is another image's, for all "
        "tokens",
        "what the tower wrote about this patch into its neighbours stays; the text is held fixed",
    ),
}
"""Title, what it is, and what it is not, of every kind of map that a page can show."""
SUMMING = ("direct", "bottleneck", "two_hop", "effect")
"""Kinds whose patches sum to something."""
AGAINST = ("slot", "pixels", "vector")
"""Kinds that are measured against another image."""

PATH_NOTES = {
    "direct": "what the heads write from the set straight into the logit",
    "value_bias": "what their value biases write",
    "ffn": "what FFNs of the token's own row make of it",
    "attention": "what later layers read from the row itself",
    "norm": "what the final norm's scale changes",
}
"""What each path of an edge effect is (METHODS.md 3.1)."""
ANOTHER = "a map of another method, in its own unit: places can be compared, sizes cannot"
HELD = (
    "One intervention at a time: the token's row cannot read the set, all other tokens can. The "
    "text is held fixed."
)
WORDS = (
    "The image is exchanged for the partner's, and with it the words that the model writes before "
    "its answer. Owen values of four paths, which sum to the whole; METHODS.md 3.7. It is about "
    "the answer, whichever token is chosen."
)
LEDGER = (
    "Every part that was written into the token's logit, with the final norm as it was. The parts "
    "sum to the logit; none of them is an effect."
)
HEADS = "Eq. 1 by head: what a head writes into the logit from the images, and from all tokens."
GRAPH = (
    "An arrow is what the token at its head loses when its own row cannot read the tokens at its "
    "tail; through other positions, when these alone hold what another image would have put there; "
    "through words, the Owen value of the words. Arrows into one token need not sum to what it "
    "loses without all of them."
)
ROUNDED = "Colours are rounded to 1/127 of each map's largest value; sums and bars are not rounded."
