/** An unmodified Python program with the official `openai` package. */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, inject, it } from "vitest";
import { base, fileWith, jsonLines, root, sampleRows, scratchDir } from "../line-under-test.ts";

const program = `
import sys, time
from openai import OpenAI

client = OpenAI()  # OPENAI_BASE_URL and OPENAI_API_KEY
file = client.files.create(file=open(sys.argv[1], "rb"), purpose="fine-tune")
job = client.fine_tuning.jobs.create(
    model=sys.argv[2], training_file=file.id, suffix="from-python",
    method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 4}}},
    extra_body={"loraline": {"gate": "none", "training": {"max_steps": 4, "learning_rate": 2e-3}}},
)
other = client.fine_tuning.jobs.create(model=sys.argv[2], training_file=file.id, suffix="cancelled")
print("cancelled:", client.fine_tuning.jobs.cancel(other.id).id == other.id)
while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(0.5)
    job = client.fine_tuning.jobs.retrieve(job.id)
print("job:", job.status, job.fine_tuned_model, job.error and job.error.message)
print("listed:", job.id in [each.id for each in client.fine_tuning.jobs.list(limit=1)])
print("events:", len({event.id for event in client.fine_tuning.jobs.list_events(job.id, limit=2)}) > 4)
while client.fine_tuning.jobs.retrieve(other.id).status != "cancelled":
    time.sleep(0.2)
print("chat:", bool(client.chat.completions.create(
    model=job.fine_tuned_model, messages=[{"role": "user", "content": "Who are you?"}], max_tokens=8).choices[0].message.content))
stream = client.chat.completions.create(
    model=job.fine_tuned_model, messages=[{"role": "user", "content": "Who are you?"}], max_tokens=8, stream=True)
print("streamed:", sum(len(chunk.choices) for chunk in stream) > 3)
print("content:", client.files.content(file.id).read() == open(sys.argv[1], "rb").read())
print("deleted:", client.files.delete(file.id).deleted)
`;

it("uploads, creates, polls, lists, cancels, chats and streams", async () => {
  await using scratch = await scratchDir();
  const rows = (await sampleRows(24)).map(({ instruction, input, output }) => ({
    messages: [
      { role: "user", content: input === "" ? instruction : `${instruction}\\n${input}` },
      { role: "assistant", content: output },
    ],
  }));
  const file = await fileWith(scratch.path, "conversations.jsonl", jsonLines(rows));
  const script = await fileWith(scratch.path, "program.py", program);
  const { url, apiKey } = inject("line");
  const { stdout } = await promisify(execFile)(join(root, ".venv/bin/python"), [script, file, base], {
    env: { ...process.env, OPENAI_BASE_URL: `${url}/v1`, OPENAI_API_KEY: apiKey },
  });
  expect(stdout.trim().split("\n")).toEqual([
    "cancelled: True",
    `job: succeeded ft:${base}:local:from-python:1 None`,
    "listed: True",
    "events: True",
    "chat: True",
    "streamed: True",
    "content: True",
    "deleted: True",
  ]);
});
