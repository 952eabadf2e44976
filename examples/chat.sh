#!/bin/sh
# Asks a server twice: the whole answer, then a stream. Usage: chat.sh QUESTION
set -eu
url=${PMKVQ_URL:-http://127.0.0.1:8080}
# A question with quotes or backslashes needs a JSON tool; see chat.py.
body=$(printf '{"messages": [{"role": "user", "content": "%s"}], "temperature": 0, "max_tokens": 400' "$1")

curl --fail-with-body --silent --show-error "$url/v1/chat/completions" \
     -H 'Content-Type: application/json' -H "Authorization: Bearer ${PMKVQ_KEY:-none}" -d "$body}"
echo
# Without --no-buffer the events come late.
curl --fail-with-body --silent --show-error --no-buffer "$url/v1/chat/completions" \
     -H 'Content-Type: application/json' -H "Authorization: Bearer ${PMKVQ_KEY:-none}" -d "$body, \"stream\": true}"
