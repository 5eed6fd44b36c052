"""The end of a certificate's validity, from its bytes: in both forms of a date, and in both forms of a certificate."""

import base64

import pytest

from prefork.sockets.tls import not_after

# openssl req -x509 -days 20000, and openssl x509 -req -signkey, which leaves the version out.
IN_2081 = (
    "MIIBbzCCARWgAwIBAgIUMfZe7f/W2yEm0zqxikh9FCgDCbswCgYIKoZIzj0EAwIwDDEKMAgGA1UEAwwBeDAgFw0yNjExMjkxNzQ5"
    "NTRaGA8yMDgxMDkwMTE3NDk1NFowDDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABOiz3YOfhMfCHRXZx8C+"
    "lFbZ4IPe9k0YHSFtTjHNu6IsN5Ux69xXpzGUzGXjz7KXjihUiwmW1Eid9nbsrxANwv+jUzBRMB0GA1UdDgQWBBRLr5DYOGle7iVe"
    "qmsrxpPBrx03ezAfBgNVHSMEGDAWgBRLr5DYOGle7iVeqmsrxpPBrx03ezAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0gA"
    "MEUCIQDICjJSUKvmGgem1lSQvV/WZfhL5+FsePkezgBy9aVV0gIgdzfBlOJLS/uFQTn8nyQG1QOY5uxYnOmvZz876AKfzPk="
)
OF_VERSION_1 = (
    "MIIBETCBuQIUa1hXzyqqwJ+lAVZpMJZir+iMZ44wCgYIKoZIzj0EAwIwDDEKMAgGA1UEAwwBeDAeFw0yNjExMjkxNzQ5NTVaFw0y"
    "NjEyMjkxNzQ5NTVaMAwxCjAIBgNVBAMMAXgwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQ7o3R1lWe3l2qO6az3FhwlVVezDyea"
    "AsLzCBvOrbm0EmVrQ5xFmaynuHEHXZ1RZByHMKHe4+ebHF5VITSVIVJIMAoGCCqGSM49BAMCA0cAMEQCICdkboB7Pzf7tIFBrtOx"
    "gd4HoTKGkyfzf61ICTd55dYKAiBCZv4Ct51d/NNDg9vS9sVBq6jGQ7G/DB1veLPNNtsa+w=="
)


@pytest.mark.parametrize(("text", "seconds"), [(IN_2081, 3523974594), (OF_VERSION_1, 1798566595)])
def test_date(text: str, seconds: int) -> None:
    assert not_after(base64.b64decode(text)) == seconds


def test_what_is_cut_off_is_no_certificate() -> None:
    der = base64.b64decode(IN_2081)
    for size in range(len(der)):
        with pytest.raises((ValueError, IndexError)):
            not_after(der[:size])
