"""The vocabulary: names of dimensions and variables with their units and titles.

Every labelled array of the package uses these names, in arguments, columns and axis titles alike.
`describe` writes unit and title into a dataset; `require` checks dimension names on entry, because
xarray turns a misspelt dimension into an outer product without a word.
"""

import xarray as xr

xr.set_options(arithmetic_join="exact")

DIMENSIONS = {
    "sample": "Sample",
    "target": "Target token",
    "layer": "Layer",
    "head": "Head",
    "source": "Source token",
    "source_set": "Source set",
    "path": "Path",
    "layer_path": "Path",
    "mode": "Mode of the cut",
    "visual_set": "Source set",
    "node_path": "Path",
    "reference": "Reference",
    "path_class": "Path class",
    "norm": "Final norm",
    "pair": "Pair of path classes",
    "write": "Part of the direct write",
    "gauge": "Gauge",
    "origin": "Origin at the source",
    "objective": "Objective",
    "role": "Role of the source token",
    "rank": "Rank, 0 the first",
    "position": "Position",
    "component": "Component",
    "d_model": "Residual dimension",
    "kind": "Kind of map",
    "explainer": "Method",  # xarray's sel() has an argument called method
    "exact": "Exact map that is compared to",
    "weights": "Weights of the model",
    "change": "What is done to the most salient pixels",
    "share": "Share of the pixels",
    "text": "Part of the text",
    "arm": "Model",
    "rule": "Rule of a saliency reward",
    "text_of": "Text: the model's own, or the first model's",
    "player": "Path, or the words",
    "partner": "Kind of partner",
    "token_class": "Token class",
    "sinks": "With or without sinks",
    "drawn": "How the texts were drawn",
    "weights_of": "Whose weights: the model's own, or those before training",
    "words_of": "Whose words: the model's own, or those before training",
    "intervention": "How the other image is brought in",
    "image_side": "Whose image",
    "text_side": "For whose image the text was written",
    "row": "Patch row",
    "column": "Patch column",
}

# Of a sum of parts, relative to the sum of their absolute values, by dtype.
BOUNDS = {"float64": 1e-6, "float32": 1e-5, "bfloat16": 5e-2, "float16": 5e-2}
GAUGES = ("raw", "centered", "contrast")
WHOSE = ("before", "own")
INTERVENTIONS = ("pixels", "vector", "slot")
"""Pixels painted before the tower, vectors swapped behind it, slots of the target's row swapped."""
ROLES = (
    *("system", "image", "earlier", "question", "thinking", "answer"),
    *("template", "text", "padding"),
)
SOURCE_SETS = ("image", "evidence", "background", "earlier", "question", "thinking")
SINKLESS = "-nosink"  # "image-nosink" is the image without its sinks
SINK_PEAK = 20  # max|h| / rms(h) behind half of the middle layers, METHODS.md 3.6
EDGE_PATHS = ("direct", "value_bias", "ffn", "attention", "norm")
LAYER_PATHS = EDGE_PATHS[:-1]  # the final norm belongs to no layer

EDGE_MODES = ("zero", "mean", "mask")
NODE_PATHS = ("direct", "routing", "mediated", "self", "ffn", "norm")
REFERENCES = ("mean", "other", "twin", "blur")
PATH_CLASSES = (
    "direct write",
    "rest of the row",
    "other positions",
)  # P1, P2, P3 of METHODS.md 3.3
PLAYERS = (*PATH_CLASSES, "words")  # P1 … P4 of METHODS.md 3.7
PAIRS = ("P1 P2", "P1 P3", "P2 P3")
NORMS = ("live", "frozen")
WRITES = ("values", "pattern")
OBJECTIVES = ("total", "ffn", "attention")
SLOT_PATHS = ("direct", "routing", "self", "ffn", "norm")
MAP_KINDS = ("direct", "bottleneck", "two_hop", "effect", "edge", "slot")
CHANGES = ("deletion", "insertion")
TEXT_PARTS = ("all", "answer")
MAP_VARIANTS = ("paper", "release")
ORIGINS = ("embed", "attention", "bias", "ffn")  # METHODS.md 2.1
IMAGE_LEVEL = "image level"  # with a number, one more origin: what DeepStack adds behind a layer
ORIGIN_TITLES = {
    "embed": "visual embedding (one hop)",
    "attention": "written there by attention (virtual heads)",
    "bias": "value biases written there",
    "ffn": "written there by FFNs",
    IMAGE_LEVEL: "added there (DeepStack) behind layer",
}
COMPONENTS = ("resid_pre", "attn_out", "resid_mid", "ffn_out", "resid_post", "injected")

PATH_TITLES = {
    "direct": "direct (Eq. 1)",
    "value_bias": "value bias",
    "ffn": "FFN",
    "attention": "attention (cross-layer)",
    "norm": "final norm",
    "routing": "routing (pattern)",
    "mediated": "mediated (other tokens)",
    "self": "self (earlier layers)",
}

RULE_TITLES = {
    "direct": "Saliency-R1's map",
    "effect": "effect map",
    "edge": "exact edge map",
}
"""Titles of the rules of a saliency reward, `interp.scoring.RULES`."""
METHOD_TITLES = {
    "random": "Noise, the same for every model",
    "raw attention": "Attention of the predicting row, mean over layers and heads",
    "rollout": "Attention rollout over layers",
    "CAM": "The target's readout of the last hidden states",
    "Grad-CAM": "Gradient-weighted last visual states",
    "input × gradient": "Pixels times the gradient on them",
    "integrated gradients": "Gradients on visual embeddings, integrated from a blank image",
    "AttnLRP": "Layer-wise relevance through the attention",
    "TAM": "Token activation map, without what other tokens activate",
    "occlusion": "What the logit loses when a patch is painted over",
    "direct (Eq. 1)": "Direct contributions, Eq. 1 of Saliency-R1",
    "bottleneck (Saliency-R1)": "Direct contributions through the thinking text",
    "two hops": "Two executable hops, image to thinking to answer",
    "first order, integrated": "Integrated first-order effects of edges",
    "exact edge": "Exact effect of cutting each edge",
    "exact slot": "Exact effect of swapping each slot",
}
"""Titles of the attribution methods, `interp.attribution.METHODS`."""
TEXT_SOURCE_TITLES = {
    "own": "the model's own text",
    "given": "a given text",
    "reference": "the sample's reference text",
}
"""Whose text is explained, the attribute `text_source` of every dataset of a sample."""
FAMILY_TITLES = {
    "gemma3": "Gemma 3",
    "idefics3": "Idefics3",
    "internvl": "InternVL3",
    "llava_onevision": "LLaVA-OneVision",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen2_vl": "Qwen2-VL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL-MoE",
    "smolvlm": "SmolVLM",
}
"""Titles of the model families, `interp.model.families.MODEL_FAMILIES`."""
REPORT_TITLES = {
    "direct_vs_indirect": "Direct against indirect contributions of the image",
    "faithfulness": "How faithful saliency maps are",
    "before_after": "Before and after training on a saliency reward",
}
"""Titles of the reports, `analyses.reports.REPORTS`."""

VARIABLES = {
    "is_correct": ("1", "The model's own answer is right"),
    "is_well_formed": ("1", "One thinking span, an answer and an end"),
    "n_tokens": ("1", "Length of the model's own text in tokens"),
    "written": ("", "The model's own text"),
    "question": ("", "Question"),
    "answer": ("", "Answer of the text that is explained"),
    "family": ("", "Kind of question"),
    "reference_answer": ("", "Reference answer"),
    "text": ("", "The text that is explained"),
    "text_token_id": ("", "Token ids of the model's own text, -1 behind it"),
    "n_boxes": ("1", "Number of evidence boxes"),
    "box": ("1", "Evidence box, x0 y0 x1 y1 in 0..1"),
    # name: (unit, title)
    "direct": ("logit", "Direct contribution"),
    "ffn": ("logit", "FFN contribution"),
    "value_bias": ("logit", "Contribution of the value bias"),
    "embed": ("logit", "Contribution of the embedding"),
    "logit": ("logit", "Logit of the target"),
    "remainder": ("logit", "Logit minus the sum of its parts"),
    "replay_drift": ("logit", "Logit of the prefill minus logit of the replay"),
    "magnitude": ("logit", "Sum of absolute parts of the logit"),
    "log_probability": ("nat", "Log-probability of the target"),
    "effect": ("logit", "Effect along a path"),
    "mode_total": ("logit", "Total edge effect by mode of the cut"),
    "mode_direct": ("logit", "Direct part of the edge effect by mode of the cut"),
    "node_effect": ("logit", "Node effect along a path"),
    "node_total": ("logit", "Total node effect"),
    "node_defined": ("1", "The set lies before the row and the reference is one for the target"),
    "shapley_total": ("logit", "Total effect of a coalition game"),
    "patch_edge": ("logit", "Effect of cutting the edge to one patch"),
    "patch_slot": ("logit", "Effect of swapping one patch's slot for its mean reference"),
    "first_order_map": ("logit", "Integrated first-order effect of one patch"),
    "has_patch": ("1", "Exact patch maps were made for this target"),
    "effect_by_layer": ("logit", "Effect along a path, by layer"),
    "total": ("logit", "Total effect of the source set"),
    "is_defined": ("1", "There is something before the target's row to have an effect"),
    "residual": ("activation", "Residual stream"),
    "direct_by_layer": ("logit", "Direct contribution by layer and role"),
    "direct_by_role": ("logit", "Direct contribution by role"),
    "mediated_by_role": ("logit", "Mediated effect by role of the other token"),
    "mediated_alone": ("logit", "Mediated effect with the source set's own slots clean"),
    "direct_by_origin": ("logit", "Direct contribution by origin at the source"),
    "image_by_origin": ("logit", "Direct contribution of the image by origin at the source"),
    "origin_remainder": ("logit", "Direct contribution minus the sum of its origins"),
    "log_likelihood": ("nat", "Mean log-likelihood of the text's tokens on a changed image"),
    "agreement": ("1", "Rank agreement (Spearman) with an exact map"),
    "asked_excess": (
        "1",
        "Mass on the asked object among all objects, beyond chance",
    ),
    "seconds": ("s", "Time to make the map of one target"),
    "extra_bytes": ("B", "Peak memory above what the process held before"),
    "answer_map": ("1", "Map of the whole answer, in each method's own unit"),
    "of_original": ("nat", "Mean log-likelihood of the text's tokens on the original image"),
    "of_blank": ("nat", "Mean log-likelihood of the text's tokens on a blank image"),
    "alignment": ("1", "Alignment score: share of the map's mass on the evidence"),
    "chance": ("1", "Share of the image's area inside the boxes"),
    "alignment_shuffled": ("1", "Alignment score, mean over all other places of the boxes' union"),
    "alignment_center": ("1", "Alignment score with a centred rectangle of the same area"),
    "border_share": ("1", "Share of the map's mass in the outermost cells"),
    "border_area": ("1", "Share of the image's area in the outermost cells"),
    "has_mass": ("1", "The map has a positive value"),
    "visual_attention": ("1", "Share of a row's attention on visual tokens"),
    "map": ("logit", "Contribution or effect of a visual token"),
    "first_order": ("logit", "First-order effect of an edge"),
    "first_order_bias": ("logit", "First-order effect of the value biases"),
    "completeness_error": ("logit", "Total effect minus the sum of first-order effects"),
    "joint": ("logit", "Effect of all tokens of the set together"),
    "patch_interaction": ("logit", "Joint effect minus the sum over single tokens"),
    "shapley": ("logit", "Shapley value"),
    "shapley_strict": ("logit", "Shapley value, only values counted as direct"),
    "pair_interaction": ("logit", "Shapley interaction of two path classes"),
    "direct_write": ("logit", "Direct write under the frozen norm, by what changes in it"),
    "words_total": ("logit", "Log-odds lost when image and words are the partner's"),
    "words_owen": ("logit", "Owen value of each path and of the words"),
    "words_owen_strict": ("logit", "Owen value, only values counted as direct"),
    "words_shapley": ("logit", "Shapley value of four players"),
    "words_shapley_strict": ("logit", "Shapley value of four players, only values direct"),
    "words_interaction": ("logit", "Interaction of the image and the words"),
    "words_value": ("logit", "Value of each coalition of paths and words"),
    "words_corner": ("logit", "The model's own output for each image behind each text"),
    "parting": ("logit", "Shapley value at the first word that differs"),
    "parting_total": ("logit", "Log-odds of the first word that differs, lost with the image"),
    "first_total": ("logit", "Total effect of the image, the text held fixed"),
    "first_direct": ("logit", "Shapley value of the direct write, the text held fixed"),
    "first_direct_strict": ("logit", "The same, only values counted as direct"),
    "control_right": ("logit", "Effect of the image on the answer against a neutral foil"),
    "control_wrong": ("logit", "The same with another image before the text"),
    "has_sinks": ("", "The image has sinks, and other tokens"),
    "n_texts": ("1", "Texts that were played"),
    "has_same_words": ("", "Both greedy texts are the same"),
    "outcome_token": ("", "Token of the answer where the two answers part"),
    "foil_token": ("", "The other answer's token there"),
    "foil_token_id": ("", "Token that the contrast gauge measures against"),
    "words_effect": ("logit", "Total effect of image and words against the twin's"),
    "set_total": ("logit", "Effect of bringing the other image in for a whole set"),
    "rank_with_pixels": ("1", "Rank agreement of an intervention's map with that of pixels"),
    "is_twin_foil": ("", "That is the twin's token there, and not the likeliest other one"),
    "signed_sum": ("logit", "Sum of the direct map over the image"),
    "positive_mass": ("logit", "Sum of the direct map's positive values"),
    "negative_mass": ("logit", "Sum of the direct map's negative values"),
    "cancellation": ("1", "Cancellation index of the direct map, 1 − |Σ| / Σ|·|"),
    "on_sinks": ("1", "Share of the direct map's mass on sinks"),
    "rank": ("1", "Rank agreement of a map with exact patch effects"),
    "sign": ("1", "Share of patches with the same sign in a map and in exact patch effects"),
    "map_xy": ("logit²", "Sum over patches of first-order times exact effect"),
    "map_xx": ("logit²", "Sum over patches of the squared first-order effect"),
    "map_yy": ("logit²", "Sum over patches of the squared exact effect"),
    "n_sources": ("1", "Number of tokens of the sequence"),
    "n_sinks": ("1", "Number of sinks"),
    "largest_peak": ("1", "Largest max|h| / rms(h) of a token"),
    "box_share": ("1", "Share of the boxes' area that evidence tokens cover"),
    "pnde": ("logit", "Pure natural direct effect"),
    "tnde": ("logit", "Total natural direct effect"),
    "pnie": ("logit", "Pure natural indirect effect"),
    "tnie": ("logit", "Total natural indirect effect"),
    "head_direct": ("logit", "Direct contribution of a head"),
    "head_image": ("logit", "Direct contribution of a head from visual tokens"),
    "top_layer": ("1", "Layer of the head of a rank"),
    "top_head": ("1", "Number of the head of a rank in its layer"),
    "top_direct": ("logit", "Direct contribution of a source token by the head of a rank"),
    "top_attention": ("1", "Weight of attention on a source token in the head of a rank"),
    "method_map": ("1", "Map of another method, in its own unit"),
    "likely_token": ("", "Token of a rank as text, the likeliest first"),
    "likely_token_id": ("1", "Token id of a rank, the likeliest first"),
    "likely_log_probability": ("nat", "Log-probability of the token of a rank"),
    "interaction": ("logit", "Interaction of direct and indirect paths"),
}

COORDINATES = {
    "target_position": ("1", "Row of input_ids whose output predicts the target, padding counted"),
    "target_token": ("", "The target's token as text"),
    "target_token_id": ("1", "The target's token id"),
    "target_role": ("", "Role of the predicted token: thinking, answer, template, text"),
    "source_token": ("", "The source token as text"),
    "source_token_id": ("1", "The source token's id"),
    "source_role": ("", "Role of the source token, one of `ROLES`"),
    "image": ("1", "Number of the image that a visual token belongs to, -1 for text"),
    "view": ("1", "View of the image: 0 the finest, 1 a small one beside it; -1 for text"),
    "box_overlap": ("1", "Share of the patch's area inside the union of the boxes"),
    "is_evidence": ("1", "The patch counts as evidence: half of it inside a box, or the most"),
    "peak": ("1", "Largest max|h| / rms(h) of the token in the middle layers (METHODS.md 3.6)"),
    "is_sink": ("1", "Attention sink: the peak exceeds 20 in half of the middle layers"),
    "token": ("", "Token as text"),
    "token_role": ("", "Role of the token, one of `ROLES`"),
}
"""Coordinates that are no dimension, with unit and title."""
ATTRIBUTES = {
    "model": "The model's name: embedded, hub id or folder",
    "revision": "Revision of the hub id, if one was asked for",
    "model_hash": "Hash over every number of the base model's weights",
    "adapter": "The adapter's name, empty without one",
    "adapter_hash": "Hash over the adapters' weights, and over which are active and merged",
    "prompt": "The system prompt: plain, the chat template's own, or think, Saliency-R1's",
    "sample": "The sample's id",
    "partner": "Id of the partner, whose image and words stand against the sample's",
    "text_source": "Whose text is explained: own (the model's greedy one), reference or given",
    "text_is_complete": "Whether the text came to its end: yes, or no where it was cut off",
    "data": "Data set and split",
    "data_hash": "Hash over image, question, text, boxes and twin",
    "norm": "How the final norm is treated in what is written (METHODS.md 1)",
    "gauge": "The number a logit is measured above (METHODS.md 1)",
    "detail": "How finely direct contributions are kept: full, tokens or summary",
    "include_value_bias": "Whether the value bias is spread over the sources, as the release does",
    "mode": "How edges are cut: zero, mean or mask (METHODS.md 3.1)",
    "variant": "paper, or release for the numbers of Saliency-R1's code (docs/MAPS.md)",
    "n_nodes": "Nodes of the integration (METHODS.md 3.4)",
    "form": "Exact patch maps of cut edges or of swapped slots (METHODS.md 3.5)",
    "reference": "The other image that something is measured against",
    "dtype": "The model's dtype",
    "attn_implementation": "The model's attention",
    "torch": "Version of torch",
    "transformers": "Version of transformers",
    "nnsight": "Version of nnsight",
    "xarray": "Version of xarray",
}
"""Attributes of a dataset of one sample. A run on disk has more, of its options and statuses."""


def require(array: xr.DataArray | xr.Dataset, *dims: str) -> None:
    """Raises ValueError unless `array` has every one of the dimensions."""
    missing = [dim for dim in dims if dim not in array.dims]
    if missing:
        raise ValueError(f"expected dimensions {dims}, got {tuple(array.dims)}: {missing} missing")


def describe(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with `units` and `long_name` on every variable and coordinate of the vocabulary.

    Raises:
        ValueError: a data variable is not in the vocabulary.
    """
    for name, array in dataset.data_vars.items():
        if name not in VARIABLES:
            raise ValueError(f"expected variables of interp.vocabulary.VARIABLES, got {name!r}")
        array.attrs["units"], array.attrs["long_name"] = VARIABLES[name]
    for name, title in DIMENSIONS.items():
        if name in dataset.coords:
            dataset.coords[name].attrs["long_name"] = title
    for name, (unit, title) in COORDINATES.items():
        if name in dataset.coords:
            dataset.coords[name].attrs |= {"units": unit, "long_name": title}
    return dataset
