"""The networks, their weights in the published formats, attention, pooling, the classifier."""
