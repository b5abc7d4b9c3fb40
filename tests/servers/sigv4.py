"""Signs requests as AWS Signature Version 4 wants it, for the MinIO of tests and measurements."""

import datetime
import hashlib
import hmac
import urllib.parse

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"


def digest(data):
    return hashlib.sha256(data).hexdigest()


def signed_headers(method, url, access_key, secret_key, service, body_digest=UNSIGNED_PAYLOAD, headers=None):
    """The headers of a request, with those that sign it.

    `url` is as it goes over the line: its path quoted, its query quoted and in order. `service` is "s3" or "sts", and
    `headers` what else is sent, by names in small letters.
    """
    where = urllib.parse.urlsplit(url)
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    signed = {"host": where.netloc, "x-amz-content-sha256": body_digest, "x-amz-date": now} | (headers or {})
    names = ";".join(sorted(signed))
    lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
    request = f"{method}\n{where.path}\n{where.query}\n{lines}\n{names}\n{body_digest}"
    scope = f"{now[:8]}/us-east-1/{service}/aws4_request"
    key = b"AWS4" + secret_key.encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{digest(request.encode())}"
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"Credential={access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return signed | {"authorization": f"AWS4-HMAC-SHA256 {credential}"}
