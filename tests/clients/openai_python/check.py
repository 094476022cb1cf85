"""The openai package for Python against a server: chat, streams, completions, log-probabilities, models, errors."""

import asyncio
import json
import os
import threading
from typing import Optional

import openai
from pydantic import BaseModel, Field

BASE_URL, MODEL, ADAPTER = os.environ["BASE_URL"], os.environ["MODEL"], os.environ["ADAPTER"]
OVERLOAD_URL = os.environ["OVERLOAD_URL"]
HAS_KEY = os.environ["OPENAI_API_KEY"] != "none"
MESSAGES = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Name a colour."}]

client = openai.OpenAI(base_url=f"{BASE_URL}/v1", max_retries=0, timeout=120)


def check_models():
    cards = {card.id: card for card in client.models.list()}
    assert MODEL in cards, cards
    assert client.models.retrieve(MODEL).object == "model"
    if ADAPTER:
        assert cards[ADAPTER].parent, cards[ADAPTER]
        assert client.models.retrieve(ADAPTER).root


def chat(**options):
    options = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_completion_tokens": 24} | options
    return client.chat.completions.create(**options)


def check_chat():
    answer = chat()
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content, answer
    assert choice.finish_reason in ("stop", "length"), answer
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert answer._request_id, "no x-request-id"

    with chat(stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert content == choice.message.content, (content, choice.message.content)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == choice.finish_reason and not any(reasons[:-1]), reasons
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == answer.usage.completion_tokens

    options = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_completion_tokens": 24}
    with client.chat.completions.stream(**options) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
    assert "".join(deltas) == choice.message.content, deltas


def check_logprobs():
    answer = chat(logprobs=True, top_logprobs=3, max_completion_tokens=4)
    rows = answer.choices[0].logprobs.content
    assert len(rows) == answer.usage.completion_tokens
    for row in rows:
        assert row.logprob <= 0 and len(row.top_logprobs) == 3, row
        assert row.top_logprobs[0].logprob == row.logprob, "greedy takes the likeliest"
        assert bytes(row.bytes).decode("utf-8", "replace") == row.token


def check_seeds():
    sampled = [chat(temperature=1.0, seed=11, n=2, max_completion_tokens=12) for _ in range(2)]
    texts = [[choice.message.content for choice in answer.choices] for answer in sampled]
    assert texts[0] == texts[1], texts
    stopped = chat(stop=[texts[0][0][:1]], temperature=1.0, seed=11, max_completion_tokens=12)
    assert stopped.choices[0].finish_reason == "stop" and stopped.choices[0].message.content == ""


def check_completions():
    answer = client.completions.create(model=MODEL, prompt="abcdefg", max_tokens=6, temperature=0)
    text = answer.choices[0].text
    assert answer.object == "text_completion" and text
    stream = client.completions.create(model=MODEL, prompt="abcdefg", max_tokens=6, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == text

    extra = {"return_token_ids": True, "top_k": -1, "min_p": 0.0, "ignore_eos": True}
    both = client.completions.create(
        model=MODEL, prompt=["abcdefg", "hello"], max_tokens=6, temperature=0, extra_body=extra
    )
    assert [choice.index for choice in both.choices] == [0, 1] and both.usage.completion_tokens == 12
    ids = both.choices[0].model_extra["prompt_token_ids"]
    echoed = client.completions.create(
        model=MODEL, prompt=[ids], max_tokens=1, temperature=0, logprobs=2, echo=True
    ).choices[0]
    logprobs = echoed.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == len(ids) + 1
    assert logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:])
    for own, top in list(zip(logprobs.token_logprobs, logprobs.top_logprobs))[1:]:
        assert own in top.values() and len(top) in (2, 3), (own, top)


class Colour(BaseModel):
    name: str = Field(max_length=20)


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def check_errors():
    unknown = refused(openai.NotFoundError, lambda: chat(model="no-such-model"))
    assert unknown.code == "model_not_found" and unknown.param == "model", unknown.body
    assert unknown.request_id
    long = [{"role": "user", "content": "word " * 200_000}]
    exceeded = refused(openai.BadRequestError, lambda: chat(messages=long))
    assert exceeded.code == "context_length_exceeded", exceeded.body
    absurd = refused(openai.BadRequestError, lambda: chat(temperature=-1))
    assert absurd.param == "temperature", absurd.body
    roles = refused(openai.BadRequestError, lambda: chat(messages=[{"role": "alien", "content": "x"}]))
    assert roles.param == "messages[0].role", roles.body
    refused(openai.NotFoundError, lambda: client.get("/no/such/route", cast_to=object))
    if HAS_KEY:
        refused(openai.AuthenticationError, lambda: client.with_options(api_key="wrong").models.list())


class Person(BaseModel):
    name: str = Field(max_length=20)
    sportsperson: bool
    born: Optional[int]
    places: list[Colour] = Field(max_length=3)


def check_constrained():
    for kind in (Colour, Person):
        for seed in range(3):
            answer = client.chat.completions.parse(
                model=MODEL, messages=MESSAGES, response_format=kind, max_completion_tokens=300, temperature=1, seed=seed
            )
            choice = answer.choices[0]
            assert choice.finish_reason == "stop" and isinstance(choice.message.parsed, kind), choice
    # What the budget ends is whole, and says so.
    schema = {"type": "object", "properties": {"words": {"type": "array", "items": {"type": "string"}, "minItems": 9}}}
    schema |= {"required": ["words"]}
    answer = chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}, max_completion_tokens=60)
    assert len(json.loads(answer.choices[0].message.content)["words"]) >= 9, answer
    assert answer.usage.completion_tokens <= 60 and answer.choices[0].finish_reason in ("stop", "length"), answer
    answer = chat(response_format={"type": "json_object"}, max_completion_tokens=60)
    assert isinstance(json.loads(answer.choices[0].message.content), dict), answer
    answer = chat(extra_body={"structured_outputs": {"choice": ["blue", "green"]}})
    assert answer.choices[0].message.content in ("blue", "green") and answer.choices[0].finish_reason == "stop"
    broken = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"not": {"pattern": "a"}}}}
    error = refused(openai.BadRequestError, lambda: chat(response_format=broken))
    assert error.param == "response_format" and "`not` at $" in str(error), error.body


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How the weather is in a city.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}


def check_call(call):
    assert call.type == "function" and call.id, call
    arguments = json.loads(call.function.arguments)
    assert list(arguments) == {"weather": ["city", "days"], "now": []}[call.function.name], call


def check_tools():
    options = {"tools": [WEATHER, NOW], "max_completion_tokens": 300, "temperature": 1}
    for seed in range(3):
        answer = chat(tool_choice="required", seed=seed, **options).choices[0]
        assert answer.message.tool_calls and answer.message.content is None, answer
        assert answer.finish_reason in ("tool_calls", "length"), answer
        for call in answer.message.tool_calls:
            check_call(call)
        with chat(tool_choice="required", seed=seed, stream=True, **options) as stream:
            names, arguments = [], []
            for part in (part for chunk in stream for part in chunk.choices[0].delta.tool_calls or []):
                if part.index == len(names):
                    assert part.id and part.function.name, part
                    names.append(part.function.name)
                    arguments.append("")
                arguments[part.index] += part.function.arguments
        whole = [(call.function.name, call.function.arguments) for call in answer.message.tool_calls]
        assert list(zip(names, arguments)) == whole, (names, arguments, whole)
    named = {"type": "function", "function": {"name": "now"}}
    answer = chat(tool_choice=named, **options).choices[0]
    assert [call.function.name for call in answer.message.tool_calls] == ["now"], answer
    assert not chat(tool_choice="none", **options).choices[0].message.tool_calls
    assert chat(**options).choices[0].finish_reason in ("stop", "length", "tool_calls")
    # The answer to a call is the next turn.
    turn = answer.message.model_dump(exclude_none=True)
    result = {"role": "tool", "tool_call_id": answer.message.tool_calls[0].id, "content": "noon"}
    assert chat(messages=[*MESSAGES, turn, result], tools=[NOW], max_completion_tokens=10).choices
    # The package's own helpers: pydantic models as tools, and events of a stream.
    helper = openai.pydantic_function_tool(Person)
    parsed = client.chat.completions.parse(model=MODEL, messages=MESSAGES, tools=[helper], tool_choice="required", seed=1)
    assert all(isinstance(call.function.parsed_arguments, Person) for call in parsed.choices[0].message.tool_calls)
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, tools=[helper], tool_choice="required", seed=1) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert done and all(isinstance(event.parsed_arguments, Person) for event in done), done
    for broken, param in (({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"), ({"tool_choice": "required"}, "tool_choice")):
        error = refused(openai.BadRequestError, lambda: chat(**broken))
        assert error.param == param, error.body


def check_adapter():
    if not ADAPTER:
        print("SKIPPED: adapters (no ADAPTER given)")
        return
    answer = chat(model=ADAPTER)
    assert answer.model == ADAPTER and answer.choices[0].message.content, answer
    assert answer.choices[0].message.content != chat().choices[0].message.content, "the adapter changes nothing"
    assert answer.system_fingerprint != chat().system_fingerprint


def check_early_close():
    async def run():
        async with openai.AsyncOpenAI(base_url=f"{BASE_URL}/v1", timeout=120) as other:

            async def one(idx):
                stream = await other.chat.completions.create(
                    model=MODEL, messages=MESSAGES, stream=True, max_completion_tokens=200, seed=idx
                )
                async for _ in stream:
                    break
                await stream.close()

            await asyncio.gather(*(one(idx) for idx in range(8)))

    asyncio.run(run())
    assert chat(max_completion_tokens=1).choices


def check_retries():
    if not OVERLOAD_URL:
        return
    single = openai.OpenAI(base_url=f"{OVERLOAD_URL}/v1", max_retries=0, timeout=120)
    options = {"model": MODEL, "prompt": "x", "max_tokens": 1000, "extra_body": {"ignore_eos": True}}
    first = single.completions.create(stream=True, **options)
    next(first)
    full = refused(openai.RateLimitError, lambda: single.completions.create(model=MODEL, prompt="x", max_tokens=1))
    assert full.code == "rate_limit_exceeded" and int(full.response.headers["retry-after"]) >= 1
    threading.Timer(0.3, first.close).start()
    patient = single.with_options(max_retries=4)
    assert patient.completions.create(model=MODEL, prompt="x", max_tokens=1).choices, "a retry succeeds"


for check in (
    check_models,
    check_chat,
    check_logprobs,
    check_seeds,
    check_completions,
    check_errors,
    check_constrained,
    check_tools,
    check_adapter,
    check_early_close,
    check_retries,
):
    check()
    print(f"ok {check.__name__}")
