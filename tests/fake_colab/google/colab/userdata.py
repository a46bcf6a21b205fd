from google.colab import note, secrets


class SecretNotFoundError(Exception):
    pass


def get(key: str) -> str:
    note(f"secret {key}")
    if key not in secrets():
        raise SecretNotFoundError(key)
    return secrets()[key]
