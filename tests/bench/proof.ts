/**
 * How well the proof tells right adapters from broken ones, on real vLLM with each kind of base: AUROC of its score over adapters of four strengths,
 * two of each, and of each its copies with a scale of half and twice, one layer of 30 zeroed, two layers swapped, and another adapter's weights.
 */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { type ComputeType, type Proof, probeRecord } from "@loraline/contracts";
import { baseName, quantisedBase, smollm2Dir } from "@loraline/testkit/servers";
import { z } from "zod";
import { decideProof } from "../../services/serve/src/decide-proof.ts";
import { createVllmClient } from "../../services/serve/src/engines/vllm/client.ts";
import { startVllm, vllmKey } from "../../services/serve/src/engines/vllm/vllm-under-test.ts";
import { chooseProbes, measureProbes } from "../../services/serve/src/measure-probes.ts";
import { root } from "../line-process.ts";
import type { Row } from "./table.ts";

interface Sample {
  adapter: string;
  fault: string;
  /** Above 1 is refused. */
  score: number;
  effect: number;
  /** Share of the effect that could be missing without a refusal. */
  unseen: number;
}

/** How far the proof is from its limits, as one number. */
function scoreOf(proof: Proof): number {
  const presence = (0.25 * proof.effectExpected) / Math.max(proof.effect, 1e-9);
  const { scale } = proof;
  if (!scale) return Math.max(presence, proof.agreement / proof.agreementLimit);
  const degrees = 180 / Math.PI;
  const [angle, error] = [Math.atan(scale.value), scale.error * Math.cos(Math.atan(scale.value)) ** 2 * degrees];
  return Math.max(presence, proof.agreement / proof.agreementLimit, Math.abs(angle * degrees - 45) / (3 + 4 * error));
}

/** Probability that a broken adapter scores higher than a right one. */
function auroc(right: readonly number[], broken: readonly number[]): number {
  const wins = broken.flatMap((b) => right.map((r): number => (b > r ? 1 : b === r ? 0.5 : 0)));
  return wins.reduce((sum, win) => sum + win, 0) / wins.length;
}

export async function benchProof(): Promise<Row[]> {
  const kinds: [kind: string, dtype: ComputeType, dir: string][] = [
    ["bfloat16", "bfloat16", smollm2Dir],
    ["float32", "float32", smollm2Dir],
    ["gptq", "bfloat16", await quantisedBase("gptq")],
    ["awq", "bfloat16", await quantisedBase("awq")],
  ];
  const made = join(root, ".cache/bench-proof");
  if (!existsSync(join(made, "done"))) {
    await mkdir(made, { recursive: true });
    const python = join(root, ".venv/bin/python");
    await promisify(execFile)(python, [
      join(import.meta.dirname, "proof-adapters.py"),
      smollm2Dir,
      made,
      ...kinds.map((kind) => kind.join("=")),
    ]);
  }
  const adapters = (await readdir(made, { withFileTypes: true })).filter((entry) => entry.isDirectory()).map(({ name }) => name);
  const logs = await mkdtemp(join(tmpdir(), "loraline-proof-"));
  const rows: Row[] = [];
  try {
    for (const [kind, dtype, dir] of kinds) {
      const samples: Sample[] = [];
      await using vllm = await startVllm({
        root,
        base: { name: baseName },
        baseDir: dir,
        logFile: join(logs, `${kind}.log`),
        computeType: dtype,
      });
      using client = createVllmClient({ url: vllm.url, apiKey: vllmKey });
      for (const adapter of adapters) {
        const probes = z.array(probeRecord).parse(JSON.parse(await readFile(join(made, adapter, `${kind}.json`), "utf8")));
        const faults = (await readdir(join(made, adapter), { withFileTypes: true })).filter((entry) => entry.isDirectory());
        for (const { name: fault } of faults) {
          const loraName = `bench.${adapter}.${fault}`;
          const outcome = await client.load(loraName, join(made, adapter, fault));
          if (outcome.kind !== "done") throw new Error(`${loraName}: ${JSON.stringify(outcome)}`);
          const measured = await measureProbes(client, { base: baseName, loraName, probes: chooseProbes(probes) });
          const { proof } = decideProof(measured, new Date().toISOString(), { recorded: dtype, replica: dtype });
          samples.push({
            adapter,
            fault: fault.replace(/-\d+$/, ""),
            score: scoreOf(proof),
            effect: proof.effectExpected,
            unseen: proof.unseen ?? 1,
          });
          await client.unload(loraName);
        }
      }
      rows.push(...rowsOf(kind, samples));
    }
  } finally {
    await rm(logs, { recursive: true, force: true });
  }
  return rows;
}

function rowsOf(kind: string, samples: readonly Sample[]): Row[] {
  // An adapter's name begins with its strength: 0 and 1 were trained as people train, 3 hardly.
  const groups = { strong: /^[01]/, weak: /^[23]/ };
  return Object.entries(groups).map(([group, strength]) => {
    const of = samples.filter(({ adapter }) => strength.test(adapter));
    const right = of.filter(({ fault }) => fault === "right");
    const scores = (fault: string): number[] => of.filter((one) => one.fault === fault).map(({ score }) => score);
    const faults = [...new Set(of.map(({ fault }) => fault))].filter((fault) => fault !== "right");
    const broken = of.filter(({ fault }) => fault !== "right").map(({ score }) => score);
    const each = faults.map((fault) => `${fault} ${auroc(scores("right"), scores(fault)).toFixed(3)}`).join(", ");
    const effects = right.map(({ effect }) => effect.toFixed(2)).join(", ");
    const found = broken.filter((score) => score > 1).length;
    return {
      what: `proof on ${kind}, ${group} adapters (effect ${effects})`,
      value: `AUROC ${auroc(scores("right"), broken).toFixed(3)}`,
      detail: `${each}; refused: ${right.filter(({ score }) => score > 1).length} of ${right.length} right, ${found} of ${broken.length} broken; could be missing unseen: ${right.map(({ unseen }) => `${(100 * unseen).toPrecision(2)} %`).join(", ")}`,
    };
  });
}
