"""The reports: a folder each, with the same rooms, none of which knows another report's.

measure     what is measured on the samples of a shard, by a model
findings    numbers out of a run, with their intervals
figures     findings, drawn
words       findings, in sentences
page        findings, figures and words as one self-contained page
"""

REPORTS = ("direct_vs_indirect", "faithfulness", "before_after")
"""Every report: its folder here, its command in `analyses/`, its title in `interp.vocabulary`."""
