#!/usr/bin/env python3
"""Prints three lines, the access key, secret key and session token of a MinIO user who may do only what a policy allows.

Endpoint, access key and secret key are the arguments, the policy (JSON) is standard input. The user is a session of the
one who asks (STS AssumeRole, signed as AWS Signature Version 4 wants it) and ends after an hour.
"""

import re
import sys
import urllib.parse
import urllib.request

import sigv4


def main():
    endpoint, access_key, secret_key = sys.argv[1:]
    fields = {"Action": "AssumeRole", "Version": "2011-06-15", "DurationSeconds": "3600", "Policy": sys.stdin.read()}
    body = urllib.parse.urlencode(fields).encode()
    url, form = endpoint + "/", {"content-type": "application/x-www-form-urlencoded"}
    headers = sigv4.signed_headers("POST", url, access_key, secret_key, "sts", sigv4.digest(body), form)
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
        text = answer.read().decode()
    for name in ("AccessKeyId", "SecretAccessKey", "SessionToken"):
        print(re.search(f"<{name}>(.+?)</{name}>", text)[1])


if __name__ == "__main__":
    main()
