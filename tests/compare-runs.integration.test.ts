/** `loraline plot` and `loraline compare` as users type them, against a gateway with a simulated engine. */
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test as testWithNats } from "@loraline/testkit";
import { describe, expect } from "vitest";
import {
  adapterOf,
  base,
  heldBy,
  playServed,
  playTokenized,
  playTrained,
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

const test = testWithNats.extend("dir", async ({}, { onCleanup }) => {
  const dir = await mkdtemp(join(tmpdir(), "loraline-compare-"));
  onCleanup(() => rm(dir, { recursive: true, force: true }));
  return dir;
});

describe("two runs", () => {
  test("are compared: what differs in their settings, results, curves, and what they answer", async ({ nc, tenant, dir }) => {
    await using line = await startGateway({ nc, tenant });
    const at = { url: line.url, apiKey: line.key };
    await registerEngine(line.bus);
    const settings = join(dir, "run.yaml");
    await writeFile(settings, "lora: { r: 16 }\ntraining: { learning_rate: 0.001 }\n");
    const start = async (...more: string[]) => {
      const command = ["run", join(root, "samples/persona.jsonl"), "--base", base, "--name", "pirate", "--no-follow", ...more];
      const { out, err } = await loraline(at, command);
      expect(out, err).toMatch(/^[0-9A-Z]{26}\n$/);
      return out.trim();
    };
    const runs = [await start(), await start("--settings", settings)] as const;
    for (const [index, runId] of runs.entries()) {
      await playTokenized(line.bus, tenant, runId);
      await playTrained(line.bus, tenant, runId);
      await playServed(line.bus, tenant, runId, "pirate", index + 1);
    }
    const versions = runs.map((runId, index) =>
      versionOf(tenant, "pirate", index + 1, { runId, engineName: `${tenant}.pirate.v${index + 1}.dddddddddddd` }),
    );
    await using engine = await startEngine(...versions.map(({ engineName }) => engineName));
    const state = adapterOf(tenant, "pirate", versions);
    await putAdapter(line.bus, state);
    await putReplica(
      line.bus,
      replicaOf(
        "r1",
        engine.url,
        versions.map((version) => heldBy(state, version)),
      ),
    );
    await expect.poll(async () => (await line.openai.models.list()).data.map(({ id }) => id)).toContain(`${tenant}/pirate@2`);
    await expect.poll(async () => (await line.openai.fineTuning.jobs.retrieve(`ftjob-${runs[1]}`)).status).toBe("succeeded");

    const prompts = join(dir, "prompts.txt");
    await writeFile(prompts, "Who are you?\n\nAhoy?\n");
    const svg = join(dir, "curves.svg");
    const { out, err, code } = await loraline(at, ["compare", "pirate@1", runs[1], "--prompts", prompts, "--svg", svg]);
    expect(code, err).toBe(0);
    expect(out).toMatch(/lora\.r +8 +16\n/);
    expect(out).toMatch(/training\.learning_rate +0\.0002 +0\.001\n/);
    expect(out).not.toContain("training.seed");
    expect(out).toMatch(/version +pirate@1 +pirate@2\n/);
    expect(out).toMatch(/held-out loss +1\.2000 +1\.2000\n/);
    for (const curve of ["a: training loss", "b: training loss"]) expect(out).toContain(curve);
    expect(out).toMatch(/3\.000┤/);
    expect(out).toMatch(/> Who are you\?\n.*\nArr, matey ☠ +│ Arr, matey ☠\n/);
    expect(engine.requests.map(({ body }) => [body["model"], body["temperature"]])).toEqual(
      expect.arrayContaining(versions.map(({ engineName }) => [engineName, 0])),
    );
    const drawing = await readFile(svg, "utf8");
    expect(drawing).toMatch(/^<svg /);
    expect(drawing).toContain("b: training loss");

    const same = await loraline(at, ["compare", "pirate@2", "pirate", "--json"]);
    expect(JSON.parse(same.out)).toMatchObject({
      a: runs[1],
      b: runs[1],
      settings: [],
      curves: { a: [{ step: 1, train_loss: 3 }, {}, {}] },
    });
    expect(await loraline(at, ["compare", "pirate@7", "last"])).toMatchObject({
      code: 4,
      err: expect.stringContaining("pirate@1, pirate@2"),
    });

    const plotted = await loraline(at, ["plot", "last", "--svg", join(dir, "one.svg")]);
    expect(plotted.out).toMatch(new RegExp(`^${runs[1]} +${tenant}/pirate\\n[^]*training loss[^]*3\\.000┤[^]*written: `));
    expect(await readFile(join(dir, "one.svg"), "utf8")).toContain("loss per token");
    const fresh = await start();
    const nothing = await loraline(at, ["plot", fresh]);
    expect(nothing.out).toContain("no step of it is known");
    const unasked = await loraline(at, ["compare", "pirate@1", fresh, "--prompts", prompts]);
    expect(unasked).toMatchObject({ code: 2, err: expect.stringContaining("made no version that could be asked") });
  });
});
