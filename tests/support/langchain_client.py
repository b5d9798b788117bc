"""What LangChain's ChatOpenAI makes of the gateway, as JSON: a program of .peers/clients."""

import json
import sys

import httpx
import openai
from langchain_openai import ChatOpenAI

GATEWAY, FAKE, KEY, MODEL = sys.argv[1:]
TOOL = {"name": "weather", "description": "", "parameters": {"type": "object", "properties": {}}}


def chat(**changes):
    http = httpx.Client(trust_env=False)
    options = {"model": MODEL, "api_key": KEY, "base_url": f"{GATEWAY}/v1", "max_retries": 0}
    return ChatOpenAI(**{**options, "http_client": http, **changes})


def streamed(model):
    """All pieces, added up as LangChain's users do."""
    pieces = list(model.stream("one two"))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    return whole, len(pieces)


def error_of(model):
    try:
        streamed(model)
    except openai.OpenAIError as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return {"kinds": kinds, "code": error.code, "message": str(error)}
    return None


def mode(name):
    httpx.get(f"{FAKE}/mode/{name}", trust_env=False).raise_for_status()


def main():
    answer = chat().invoke("one two")
    stream, pieces = streamed(chat(stream_usage=True))
    tools = chat().bind_tools([TOOL])
    errors = {
        "key": error_of(chat(api_key="gw-wrong")),
        "model": error_of(chat(model="other")),
        "field": error_of(chat(temperature=9)),
    }
    mode("cut")
    errors["broken"] = error_of(chat())
    mode("http_500")
    errors["engine"] = error_of(chat())
    mode("ok")
    found = {
        "text": answer.content,
        "usage": answer.usage_metadata["output_tokens"],
        "streamed text": stream.content,
        "streamed usage": stream.usage_metadata["output_tokens"],
        "pieces": pieces,
        "call": tools.invoke("one two").tool_calls,
        "streamed call": streamed(tools)[0].tool_calls,
        "errors": errors,
    }
    print(json.dumps(found))


main()
