"""Golden vectors: what OpenSSL and hashlib make of the protocol, for the Rust tests to compare with.

    python3 tests/vectors/make_vectors.py

writes `keys.json` and `files.json` beside this script. It needs Python 3.10 or later, the package `cryptography` (which
runs on OpenSSL; `pip install cryptography`), and `tests/peer/protocol.py`. Running it again writes the same bytes:
nothing here is random, and the environment's salts are not used.

The vectors are checked in, so the tests need no Python. Run the script only after the protocol itself has changed.

keys.json   a list of objects
    name                what is special about this one
    email, password, hardware
    hardware_salt, api_key_salt, resource_key_salt
    secret_of_password  secret(password)
    hardware_hash       secret("Azaion_{hardware}_{hardware_salt}")
    api_key             secret("{email}-{password}-{hardware_hash}-{api_key_salt}")
    resource_key        secret(resource_key_salt)
    aes_key_of_api_key, aes_key_of_resource_key
                        hex, SHA-256 of the secret's text

files.json  a list of objects
    size                of the plaintext, in bytes
    key                 the secret's text, or, in `key_hex`, the raw bytes of a key fragment; a vector has one of the two
    iv                  hex
    encrypted_size      16 + the ciphertext
    split               bytes of it in the small part
    plaintext_sha256, encrypted_sha256, small_sha256, big_sha256
                        hex
    encrypted           hex, the whole, for sizes up to 64

The plaintext of a vector is not stored: it is the first `size` bytes of block 0, block 1, …, where block i is
SHA-256("loader-vector" || i as 64 bits, little-endian).
"""
import hashlib
import json
import os
import struct
import sys
from pathlib import Path

from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent / "peer"))
for salt in ("HARDWARE_SALT", "API_KEY_SALT", "RESOURCE_KEY_SALT"):
    os.environ.pop(salt, None)

import protocol  # noqa: E402  after its path and its environment are set

DEFAULT_SALTS = (protocol.HARDWARE_SALT, protocol.API_KEY_SALT, protocol.RESOURCE_KEY_SALT)
PASSWORD = "correct horse battery staple"
HARDWARE = "CPU: Raspberry Pi 4 Model B Rev 1.5. GPU: none. Memory: 4 GiB. DriveSerial: 035344534333324780a1b2c3d4014700"

# name, email, password, hardware, salts
KEYS = [
    ("plain", "user@azaion.com", PASSWORD, HARDWARE, DEFAULT_SALTS),
    ("other salts", "user@azaion.com", PASSWORD, HARDWARE, ("hs-1", "aks-2", "rks-3")),
    ("last character of the hardware differs", "user@azaion.com", PASSWORD, HARDWARE[:-1] + "1", DEFAULT_SALTS),
    ("non-ASCII text", "користувач@пошта.укр", "пароль-ключ-ß-日本語-🔑", "CPU: Ядро™ 9. GPU: none", ("сіль", "salz-ü", "塩🧂")),
    # Equal on screen, unequal in bytes: nothing may be normalised on the way to the hash.
    ("composed accent", "user@azaion.com", "caf\u00e9", HARDWARE, DEFAULT_SALTS),
    ("decomposed accent", "user@azaion.com", "cafe\u0301", HARDWARE, DEFAULT_SALTS),
    ("separators and braces in the text", "a-b-c@x-y.z", "p-{hardware}-%s-_Azaion_", "a_b-c", ("_", "-", "{}")),
    ("white space and control characters", " user ", "tab\tnewline\nnul\u0000end ", "\r\n", (" ", "\t", "\n")),
    ("quotes and backslashes", "\"user\"", "\\\"'\\u0041/", "a\\b", DEFAULT_SALTS),
    ("empty text", "", "", "", DEFAULT_SALTS),
    ("all empty", "", "", "", ("", "", "")),
    # Many blocks of SHA-384 (128 bytes each), then the last password that fits one block with its padding of 17 bytes,
    # and the first that does not.
    ("long text", "u" * 300 + "@azaion.com", "p" * 1000, "h" * 4096, ("s" * 200, "t" * 200, "u" * 200)),
    ("111 bytes", "user@azaion.com", "p" * 111, "h", DEFAULT_SALTS),
    ("112 bytes", "user@azaion.com", "p" * 112, "h", DEFAULT_SALTS),
]

# The small part is n = min(3072, encrypted * 3 / 10). The encrypted size is a multiple of 16, so n reaches 3072 at 10240 exactly.
SIZES = [
    0, 1, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 255, 256, 1000, 1024,
    3039, 3040, 3055, 3056, 3057, 3071, 3072, 3073, 3087, 3088, 4095, 4096, 4097,
    10175, 10176, 10190, 10191, 10192, 10193, 10207, 10208, 10209, 10222, 10223, 10224, 10225, 10239, 10240, 10241,
    16383, 16384, 16385, 65535, 65536, 65537, 100000, 1048576, 5242880,
]
KEY_FRAGMENT = bytes(range(0, 256, 8)) + b"\xff\x00\n"


def plaintext(size: int) -> bytes:
    blocks = (hashlib.sha256(b"loader-vector" + struct.pack("<Q", i)).digest() for i in range(-(-size // 32)))
    return b"".join(blocks)[:size]


def encrypt(data: bytes, secret, iv: bytes) -> bytes:
    """As `protocol.encrypt`, which draws its own initialization vector."""
    pad = padding.PKCS7(128).padder()
    enc = Cipher(algorithms.AES(protocol.aes_key(secret)), modes.CBC(iv)).encryptor()
    return iv + enc.update(pad.update(data) + pad.finalize()) + enc.finalize()


def key_vector(name, email, password, hardware, salts):
    protocol.HARDWARE_SALT, protocol.API_KEY_SALT, protocol.RESOURCE_KEY_SALT = salts
    api_key = protocol.api_key(email, password, hardware)
    resource_key = protocol.resource_key()
    return {
        "name": name,
        "email": email,
        "password": password,
        "hardware": hardware,
        "hardware_salt": salts[0],
        "api_key_salt": salts[1],
        "resource_key_salt": salts[2],
        "secret_of_password": protocol.secret_hash(password),
        "hardware_hash": protocol.hardware_hash(hardware),
        "api_key": api_key,
        "resource_key": resource_key,
        "aes_key_of_api_key": protocol.aes_key(api_key).hex(),
        "aes_key_of_resource_key": protocol.aes_key(resource_key).hex(),
    }


def file_vector(size, key):
    iv = hashlib.sha256(b"loader-vector-iv" + struct.pack("<Q", size) + protocol.aes_key(key)).digest()[:16]
    plain = plaintext(size)
    encrypted = encrypt(plain, key, iv)
    assert protocol.decrypt(encrypted, key) == plain
    split = protocol.split_point(len(encrypted))
    vector = {"size": size}
    vector.update({"key_hex": key.hex()} if isinstance(key, bytes) else {"key": key})
    vector.update({
        "iv": iv.hex(),
        "encrypted_size": len(encrypted),
        "split": split,
        "plaintext_sha256": hashlib.sha256(plain).hexdigest(),
        "encrypted_sha256": hashlib.sha256(encrypted).hexdigest(),
        "small_sha256": hashlib.sha256(encrypted[:split]).hexdigest(),
        "big_sha256": hashlib.sha256(encrypted[split:]).hexdigest(),
    })
    if size <= 64:
        vector["encrypted"] = encrypted.hex()
    return vector


def write(name, vectors):
    (HERE / name).write_text(json.dumps(vectors, indent=1, ensure_ascii=True) + "\n", encoding="ascii", newline="\n")


def main():
    write("keys.json", [key_vector(*key) for key in KEYS])
    protocol.HARDWARE_SALT, protocol.API_KEY_SALT, protocol.RESOURCE_KEY_SALT = DEFAULT_SALTS
    files = [file_vector(size, protocol.resource_key()) for size in SIZES]
    # Other keys: an API key, a text that is no base64, the empty text, and the raw bytes of a key fragment.
    for key in (protocol.api_key("user@azaion.com", PASSWORD, HARDWARE), "ключ 🔑", "", KEY_FRAGMENT):
        files += [file_vector(size, key) for size in (0, 33, 10224)]
    write("files.json", files)


if __name__ == "__main__":
    main()
