"""Models before and after training on a saliency reward."""
