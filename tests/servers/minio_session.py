#!/usr/bin/env python3
"""Prints three lines, the access key, secret key and session token of a MinIO user who may do only what a policy allows.

Endpoint, access key and secret key are the arguments, the policy (JSON) is standard input. The user is a session of the
one who asks (STS AssumeRole, signed as AWS Signature Version 4 wants it) and ends after an hour.
"""

import datetime
import hashlib
import hmac
import re
import sys
import urllib.parse
import urllib.request

SCOPE = "us-east-1/sts/aws4_request"


def digest(data):
    return hashlib.sha256(data).hexdigest()


def main():
    endpoint, access_key, secret_key = sys.argv[1:]
    fields = {"Action": "AssumeRole", "Version": "2011-06-15", "DurationSeconds": "3600", "Policy": sys.stdin.read()}
    body = urllib.parse.urlencode(fields).encode()
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    headers = {
        "content-type": "application/x-www-form-urlencoded",
        "host": urllib.parse.urlsplit(endpoint).netloc,
        "x-amz-content-sha256": digest(body),
        "x-amz-date": now,
    }
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    request = f"POST\n/\n\n{lines}\n{names}\n{digest(body)}"
    scope = f"{now[:8]}/{SCOPE}"
    key = b"AWS4" + secret_key.encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signed = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{digest(request.encode())}"
    signature = hmac.digest(key, signed.encode(), "sha256").hex()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    with urllib.request.urlopen(urllib.request.Request(endpoint + "/", body, headers), timeout=30) as answer:
        text = answer.read().decode()
    for name in ("AccessKeyId", "SecretAccessKey", "SessionToken"):
        print(re.search(f"<{name}>(.+?)</{name}>", text)[1])


if __name__ == "__main__":
    main()
