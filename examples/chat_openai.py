#!/usr/bin/env python3
"""OpenAI's Python package (pip install openai): a stream, then JSON by a schema. Usage: chat_openai.py QUESTION"""
import os
import sys

import openai
import pydantic


class Summary(pydantic.BaseModel):
    task: str = pydantic.Field(max_length=40)
    number_count: int


def main():
    client = openai.OpenAI(base_url=os.environ.get("PMKVQ_URL", "http://127.0.0.1:8080") + "/v1",
                           api_key=os.environ.get("PMKVQ_KEY", "none"))
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": sys.argv[1]}]
    for event in client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=400, stream=True):
        if event.choices:
            print(event.choices[0].delta.content or "", end="", flush=True)
    print()
    schema = {"name": "summary", "schema": {
        "type": "object", "properties": {"task": {"type": "string", "maxLength": 40}, "number_count": {"type": "integer"}},
        "required": ["task", "number_count"], "additionalProperties": False}}
    reply = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=1000,
                                           response_format={"type": "json_schema", "json_schema": schema})
    print(Summary.model_validate_json(reply.choices[0].message.content))


if __name__ == "__main__":
    main()
