"""Signs requests with botocore and sends them with its HTTP client.

Reads {"access_key", "secret", "token", "region", "service", "cases": [...]} from
standard input, each case with "method", "url", "headers", "body" and "presign"
(seconds; 0: the header form). Writes a list of {"status", "body", "signed"}, the
last being the headers or the URL as they were sent.
"""

import json
import sys

from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.httpsession import URLLib3Session

job = json.load(sys.stdin)
credentials = Credentials(job["access_key"], job["secret"], job["token"] or None)
session = URLLib3Session(timeout=30)
results = []
for case in job["cases"]:
    request = AWSRequest(
        method=case["method"],
        url=case["url"],
        headers=case["headers"],
        data=case["body"].encode(),
    )
    if case["presign"]:
        auth = SigV4QueryAuth(
            credentials, job["service"], job["region"], expires=case["presign"]
        )
    else:
        auth = SigV4Auth(credentials, job["service"], job["region"])
    auth.add_auth(request)
    prepared = request.prepare()
    response = session.send(prepared)
    results.append(
        {
            "status": response.status_code,
            "body": response.content.decode(),
            "signed": f"{prepared.url} {dict(prepared.headers)}",
        }
    )
json.dump(results, sys.stdout)
