"""Pictures of results, of embeddings and of how the two differ, and a page that shows them."""
