"""A certificate for the tests of TLS."""

from pathlib import Path

# A key and certificate for localhost and 127.0.0.1, made for these tests and used nowhere else:
# openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 -subj /CN=localhost
# OTHER_KEY has no certificate.
KEY = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg6COYhZaJcnD2hn7k
BiPml6NSu/4+vbw8YV5hkTBuWiChRANCAASrdHc0RFnloWWXctDwiwNBpjet1TEx
RMxUI/6rZCRpNpK+fPwnPDjwOWIBI7jkxRBr9OxK1qYNvwcpAPYaZ8YG
-----END PRIVATE KEY-----
"""
OTHER_KEY = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgsTib6e/Vf1+q/iQX
n1qBtJlTLpteumdy02jZOG2n+9GhRANCAAR4j4SBekYoUKehxxk7pqj3Na2W2nr4
gtufYSB3e4QB8wERK00HLEkVmhxxEzY3R2FxG3JpBz2ZFMgy4r8AGXon
-----END PRIVATE KEY-----
"""
CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBmjCCAUGgAwIBAgIUdaquvuKQlpuftflmpZp2quHIT5gwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMjE4NDM0NVoYDzIxMjYxMDI5
MTg0MzQ1WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASrdHc0RFnloWWXctDwiwNBpjet1TExRMxUI/6rZCRpNpK+fPwnPDjw
OWIBI7jkxRBr9OxK1qYNvwcpAPYaZ8YGo28wbTAdBgNVHQ4EFgQU+VkAgTEPx3FF
UlgPQoYl2Xv0QVAwHwYDVR0jBBgwFoAU+VkAgTEPx3FFUlgPQoYl2Xv0QVAwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARhwR/AAABgglsb2NhbGhvc3QwCgYIKoZI
zj0EAwIDRwAwRAIgUe3Ozqeuf0XFCUTEFQZKA6J2h4Qy2YNJEO1/Sbmt/LQCIHDn
wP8dw1O/R15jpr2wtetudDOYmNuS6CDDTLvodist
-----END CERTIFICATE-----
"""


def write_certificate(directory: Path) -> tuple[str, str]:
    """Write `certificate.pem` and `key.pem`; returns their paths in that order."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    certificate.write_text(CERTIFICATE)
    key.write_text(KEY)
    return str(certificate), str(key)
