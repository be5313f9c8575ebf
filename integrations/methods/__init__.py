"""Other ways to adapt a model to few examples, to compare with on equal terms."""
