"""A program on the official `openai` package, which finds the gateway by OPENAI_BASE_URL and OPENAI_API_KEY.

Reads one step per line, `["submit", ARG...]`, and answers with one line of JSON each; the test at the other end plays the
line's other services between the steps.
"""

import json
import sys
from pathlib import Path
from typing import Any

import openai

client = openai.OpenAI(max_retries=0)


def submit(base: str, path: str) -> dict:
    with open(path, "rb") as data:
        file = client.files.create(file=data, purpose="fine-tune")
    content = client.files.content(file.id).read()
    assert content == Path(path).read_bytes()
    assert [one.id for one in client.files.list()] == [file.id]
    job = client.fine_tuning.jobs.create(
        model=base,
        training_file=file.id,
        suffix="pirate",
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        metadata={"team": "sea"},
        extra_body={"loraline": {"lora": {"r": 16}, "tokenize": {"max_length": 512}}},
    )
    assert client.fine_tuning.jobs.retrieve(job.id) == job
    assert job.status == "validating_files" and job.hyperparameters.n_epochs == 2, job
    return {"file": file.id, "job": job.id}


def follow(job_id: str) -> dict:
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert client.files.wait_for_processing(job.training_file, poll_interval=0.05).status == "processed"
    events = list(client.fine_tuning.jobs.list_events(job_id, limit=3))
    assert [one.id for one in events] == [one.id for one in client.fine_tuning.jobs.list_events(job_id, limit=100)]
    data: list[Any] = [event.data for event in events if event.type == "metrics"]
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job_id))
    return {
        "status": job.status,
        "model": job.fine_tuned_model,
        "messages": [event.message for event in events],
        "losses": [one["train_loss"] for one in data],
        "checkpoints": [checkpoint.step_number for checkpoint in checkpoints],
    }


def cancel(base: str, file_id: str) -> dict:
    job = client.fine_tuning.jobs.create(model=base, training_file=file_id)
    return {"job": job.id, "status": client.fine_tuning.jobs.cancel(job.id).status}


def chat(model: str) -> dict:
    messages: list[Any] = [{"role": "user", "content": "ahoy"}]
    whole = client.chat.completions.create(model=model, messages=messages)
    stream = client.chat.completions.create(model=model, messages=messages, stream=True)
    parts = [chunk.choices[0].delta.content for chunk in stream]
    with client.chat.completions.with_streaming_response.create(model=model, messages=messages, stream=True) as response:
        lines = [line for line in response.iter_lines() if line]
    text = client.completions.create(model=model, prompt="ahoy").choices[0].text
    return {
        "model": whole.model,
        "answer": whole.choices[0].message.content,
        "parts": parts,
        "last_line": lines[-1],
        "text": text,
        "models": [one.id for one in client.models.list()],
        "retrieved": client.models.retrieve(model).id,
    }


def respond(model: str) -> dict:
    whole = client.responses.create(model=model, input="ahoy")
    with client.responses.stream(model=model, previous_response_id=whole.id, input="again") as stream:
        types = [event.type for event in stream]
        final = stream.get_final_response()
    assert client.responses.retrieve(final.id).output_text == final.output_text
    items: list[Any] = list(client.responses.input_items.list(final.id, order="asc"))
    assert [(item.role, item.content[0].text) for item in items] == [("user", "ahoy"), ("assistant", whole.output_text), ("user", "again")], items
    try:
        client.responses.cancel(final.id)
        raise AssertionError("it was complete")
    except openai.BadRequestError as error:
        assert error.code == "response_not_cancellable", error
    client.responses.delete(whole.id)
    try:
        client.responses.retrieve(whole.id)
        raise AssertionError("it is still there")
    except openai.NotFoundError:
        pass
    usage = final.usage
    assert usage is not None
    return {"model": whole.model, "text": final.output_text, "last": types[-1], "tokens": usage.total_tokens}


def upload_in_parts(path: str) -> dict:
    upload = client.uploads.upload_file_chunked(file=Path(path), mime_type="text/jsonl", purpose="fine-tune", part_size=300)
    assert upload.file is not None
    content = client.files.content(upload.file.id).read()
    assert content == Path(path).read_bytes()
    client.files.delete(upload.file.id)
    return {"status": upload.status, "name": upload.file.filename}


def failures(base: str, file_id: str) -> list:
    attempts = [
        lambda: client.with_options(api_key="wrong").models.list(),
        lambda: client.chat.completions.create(model="gpt-4o", messages=[]),
        lambda: client.files.create(file=("a.jsonl", b""), purpose="fine-tune"),
        lambda: client.files.create(file=("a.jsonl", b"{}"), purpose="batch"),
        lambda: client.files.retrieve("file-nope"),
        lambda: client.fine_tuning.jobs.create(model="gpt-4o", training_file=file_id),
        lambda: client.fine_tuning.jobs.create(model=base, training_file="file-nope"),
        lambda: client.fine_tuning.jobs.create(model=base, training_file=file_id, extra_body={"loraline": {"lora": {"r": 500}}}),
        lambda: client.fine_tuning.jobs.retrieve("ftjob-nope"),
    ]
    told = []
    for attempt in attempts:
        try:
            attempt()
            told.append(None)
        except openai.APIStatusError as error:
            told.append([type(error).__name__, error.code, error.param])
    client.files.delete(file_id)
    return told


steps = {"submit": submit, "follow": follow, "cancel": cancel, "chat": chat, "respond": respond, "upload_in_parts": upload_in_parts, "failures": failures}
for line in sys.stdin:
    step, *arguments = json.loads(line)
    print(json.dumps(steps[step](*arguments)), flush=True)
