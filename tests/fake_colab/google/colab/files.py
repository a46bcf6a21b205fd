import os

from google.colab import note


def upload_file(filename: str) -> None:
    note("upload dialog")
    if not os.environ.get("FAKE_COLAB_UPLOAD"):
        raise ValueError("File has not been uploaded")
    with open(filename, "wb") as file:
        file.write(os.environ["FAKE_COLAB_UPLOAD"].encode())
