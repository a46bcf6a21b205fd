"""Finding faces in pictures and videos and cutting them out, the same way for training and for prediction."""

__all__: list[str] = []
