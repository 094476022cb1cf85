"""langchain-openai against a server: structured output, tools, their results, streams."""

import os
from typing import Literal

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

BASE_URL, MODEL = os.environ["BASE_URL"], os.environ["MODEL"]


class Weather(BaseModel):
    """What the weather is like."""

    city: str = Field(max_length=20)
    kind: Literal["sunny", "rainy"]
    degrees: int


@tool
def multiply(a: int, b: int) -> int:
    """Multiplies two whole numbers."""
    return a * b


@tool
def now() -> str:
    """Tells the time."""
    return "noon"


def model(**options):
    options = {"max_completion_tokens": 300, "temperature": 1, "seed": 1} | options
    return ChatOpenAI(base_url=f"{BASE_URL}/v1", model=MODEL, max_retries=0, timeout=120, **options)


def check_structured_output():
    for options in ({"method": "json_schema"}, {"method": "json_schema", "strict": True}, {"method": "function_calling"}):
        for seed in range(3):
            weather = model(seed=seed).with_structured_output(Weather, **options).invoke("Rome is sunny, 20 degrees.")
            assert isinstance(weather, Weather), weather
    raw = model().with_structured_output(Weather, include_raw=True).invoke("Oslo is rainy.")
    assert raw["parsing_error"] is None and isinstance(raw["parsed"], Weather), raw


def check_tools():
    for choice in ("any", "required", "multiply"):
        answer = model().bind_tools([multiply, now], tool_choice=choice).invoke("What is 6 times 7?")
        assert answer.tool_calls and not answer.invalid_tool_calls, answer
        for call in answer.tool_calls:
            assert call["name"] == "now" or isinstance(multiply.invoke(call["args"]), int), call
    assert answer.tool_calls[0]["name"] == "multiply" and len(answer.tool_calls) == 1
    answer = model().bind_tools([multiply, now], tool_choice="auto").invoke("What is 6 times 7?")
    assert answer.tool_calls or isinstance(answer.content, str)
    assert not model().bind_tools([multiply], tool_choice="none").invoke("Hello").tool_calls


def check_results():
    bound = model().bind_tools([multiply, now])
    history = [HumanMessage("What is 6 times 7?")]
    history.append(model().bind_tools([multiply], tool_choice="multiply").invoke(history))
    history += [ToolMessage("42", tool_call_id=call["id"]) for call in history[-1].tool_calls]
    assert isinstance(bound.invoke(history), AIMessage)


def check_streams():
    bound = model().bind_tools([multiply, now], tool_choice="any")
    whole = bound.invoke("What is 6 times 7?")
    streamed = None
    for chunk in bound.stream("What is 6 times 7?"):
        streamed = chunk if streamed is None else streamed + chunk
    without_ids = lambda calls: [(call["name"], call["args"]) for call in calls]
    assert without_ids(streamed.tool_calls) == without_ids(whole.tool_calls), (streamed, whole)
    parts = list(model().with_structured_output(Weather, method="function_calling").stream("Rome is sunny."))
    assert isinstance(parts[-1], Weather), parts


for check in (check_structured_output, check_tools, check_results, check_streams):
    check()
    print(f"ok {check.__name__}")
