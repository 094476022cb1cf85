"""instructor against a server: pydantic models out of tool calls and JSON schemas, whole and in parts."""

import os
from typing import Literal, Optional

import instructor
import openai
from pydantic import BaseModel, ConfigDict, Field

BASE_URL, MODEL = os.environ["BASE_URL"], os.environ["MODEL"]
MESSAGES = [{"role": "user", "content": "Ada Lovelace, born in 1815, was a mathematician."}]


class Person(BaseModel):
    """A person. Without other members: a schema that allows them lets a small model go on with them."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=40)
    born: int
    field: Literal["science", "sports", "other"]
    alive: bool
    note: Optional[str] = Field(default=None, max_length=20)


def client(mode):
    return instructor.from_openai(openai.OpenAI(base_url=f"{BASE_URL}/v1", max_retries=0, timeout=120), mode=mode)


def check_modes():
    modes = instructor.Mode
    for mode in (modes.TOOLS, modes.TOOLS_STRICT, modes.JSON_SCHEMA):
        for seed in range(3):
            person = client(mode).chat.completions.create(
                model=MODEL,
                messages=MESSAGES,
                response_model=Person,
                max_retries=0,
                max_completion_tokens=300,
                temperature=1,
                seed=seed,
            )
            assert isinstance(person, Person), person


def check_parts():
    parts = client(instructor.Mode.TOOLS).chat.completions.create_partial(
        model=MODEL, messages=MESSAGES, response_model=Person, max_retries=0, max_completion_tokens=300, seed=1
    )
    last = None
    for part in parts:
        last = part
    assert Person.model_validate(last.model_dump()), last


for check in (check_modes, check_parts):
    check()
    print(f"ok {check.__name__}")
