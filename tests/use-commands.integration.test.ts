/** Commands as users type them, against a gateway with a simulated engine. */
import { events, version } from "@loraline/contracts";
import { test } from "@loraline/testkit";
import { join } from "node:path";
import { describe, expect } from "vitest";
import {
  adapterOf,
  base,
  heldBy,
  playStep,
  playTokenized,
  putAdapter,
  putReplica,
  registerEngine,
  replicaOf,
  startEngine,
  startGateway,
  versionOf,
} from "../services/gateway/src/gateway-under-test.ts";
import { root } from "./line-process.ts";
import { loraline } from "./run-cli.ts";

const sample = join(root, "samples/persona.jsonl");

describe("the CLI", () => {
  test("uploads, trains, shows and cancels; and says which server it speaks with", async ({ nc, tenant }) => {
    await using line = await startGateway({ nc, tenant });
    const at = { url: line.url, apiKey: line.key };
    await registerEngine(line.bus);
    const started = await loraline(at, ["run", sample, "--base", base, "--name", "persona", "--no-follow"]);
    expect(started, started.err).toMatchObject({ code: 0, out: expect.stringMatching(/^[0-9A-Z]{26}\n$/) });
    const runId = started.out.trim();
    await playTokenized(line.bus, tenant, runId);
    await line.bus.publish(events.runStarted, { tenant, id: runId }, { attempt: 1, job: "train-1" }, { key: "1" });
    await playStep(line.bus, tenant, runId, 1, 3);
    await expect.poll(() => line.openai.fineTuning.jobs.retrieve(`ftjob-${runId}`)).toMatchObject({ status: "running" });

    const [runs, shown, data, failed, none, told] = await Promise.all([
      loraline(at, ["runs"]),
      loraline(at, ["show", runId.slice(-6), "--json"]),
      loraline(at, ["data", "ls"]),
      loraline(at, ["dlq", "ls"]),
      loraline(at, ["show", "01ARZ3NDEKTSV4RRFFQ69G5FAV"]),
      loraline(at, ["version", "--json"]),
    ]);
    expect(runs.out).toMatch(new RegExp(`${runId} +running +${tenant}/persona +1/3`));
    expect(runs.out).toMatch(/r 8, lr 0\.0002, 3 epochs +- /);
    const second = await loraline(at, ["run", sample, "--base", base, "--name", "parrot", "--no-follow"]);
    const listed = async (...flags: string[]) => (await loraline(at, ["runs", ...flags])).out.match(/[0-9A-Z]{26}(?= )/g) ?? [];
    expect(await listed()).toEqual([second.out.trim(), runId]);
    expect((await loraline(at, ["show", "last"])).out).toContain(second.out.trim());
    expect(await listed("--adapter", `${tenant}/persona`)).toEqual([runId]);
    expect(await listed("--phase", "requested")).toEqual([second.out.trim()]);
    expect((await loraline(at, ["runs", "--limit", "1"])).out).toMatch(new RegExp(`older ones: --after ${second.out.trim()}\n$`));
    expect(await listed("--limit", "1", "--after", second.out.trim())).toEqual([runId]);
    expect((await loraline(at, ["runs", "--base", "other"])).out).toBe("no such runs\n");
    expect((await loraline(at, ["runs", "--phase", "flying"])).code).toBe(2);
    expect(JSON.parse(shown.out)).toMatchObject({ run: { runId, phase: "running" }, adapter: null });
    expect(data.out).toMatch(/received +persona\.jsonl/);
    expect(failed.out).toBe("no failed messages\n");
    expect(none).toMatchObject({ code: 4, err: expect.stringContaining("No such run") });
    expect(JSON.parse(told.out)).toEqual({ cli: version, server: { url: line.url, version } });
    expect(await loraline(at, ["cancel", runId])).toMatchObject({ code: 0, out: expect.stringContaining(runId) });
  });

  test("chats, whole and as a stream, and shows adapters", async ({ nc, tenant }) => {
    await using line = await startGateway({ nc, tenant, projector: false });
    const at = { url: line.url, apiKey: line.key };
    const state = adapterOf(tenant, "pirate", [versionOf(tenant, "pirate", 1)]);
    const [served] = state.versions;
    await using engine = await startEngine(served!.engineName);
    await registerEngine(line.bus);
    await putAdapter(line.bus, state);
    await putReplica(line.bus, replicaOf("r1", engine.url, [heldBy(state, served!)]));
    await expect.poll(async () => (await line.openai.models.list()).data.map(({ id }) => id)).toContain(`${tenant}/pirate`);

    const [streamed, whole, piped, adapters, promoted, unknown, none, refused] = await Promise.all([
      loraline(at, ["chat", `${tenant}/pirate`, "Ahoy?"]),
      loraline(at, ["chat", `${tenant}/pirate@1`, "Ahoy?", "--json", "--system", "Be brief."]),
      loraline(at, ["chat", `${tenant}/pirate`], "Ahoy from a pipe?"),
      loraline(at, ["adapters"]),
      loraline(at, ["promote", "pirate@1"]),
      loraline(at, ["chat", "nobody", "Ahoy?"]),
      loraline(at, ["chat", "pirate", "--checkpoint", "7", "Ahoy?"]),
      loraline({ ...at, apiKey: "ll-wrong" }, ["runs", "--json"]),
    ]);
    expect(streamed).toMatchObject({ code: 0, out: "Arr, matey ☠\n" });
    expect(JSON.parse(whole.out)).toMatchObject({ answer: "Arr, matey ☠", finishReason: "stop", usage: { total_tokens: 6 } });
    expect(piped.out).toBe("Arr, matey ☠\n");
    const asked = engine.requests.map(({ body }) => body["messages"]);
    expect(asked).toContainEqual([
      { role: "system", content: "Be brief." },
      { role: "user", content: "Ahoy?" },
    ]);
    expect(asked).toContainEqual([{ role: "user", content: "Ahoy from a pipe?" }]);
    expect(adapters.out).toMatch(new RegExp(`${tenant}/pirate +1 \\* +desired `));
    expect(promoted.code, promoted.err).toBe(0);
    expect(unknown).toMatchObject({ code: 4, err: expect.stringMatching(/^loraline: The model `nobody` does not exist/) });
    expect(none).toMatchObject({ code: 4, err: expect.stringContaining("pirate has no checkpoint of step 7: none of its runs has one.") });
    expect(refused.code).toBe(5);
    expect(JSON.parse(refused.out)).toMatchObject({ error: { code: "invalid_api_key" } });

    await engine[Symbol.asyncDispose]();
    await line[Symbol.asyncDispose]();
    expect(await loraline(at, ["runs"])).toMatchObject({
      code: 3,
      err: expect.stringMatching(/^loraline: the server at .* does not answer: /),
    });
  });
});
