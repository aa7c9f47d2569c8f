"""Speed, memory and growth of extraction at real widths, on CPUs and GPUs."""
