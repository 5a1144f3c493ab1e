"""Training the classifier: labelled embeddings, the network, and the command that fits it."""
