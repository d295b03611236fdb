/** Measures pages of a tenant with many runs, and of a run with many events, through a gateway process. BENCH_RUNS and BENCH_STEPS set how many. */
import { buckets, events, foldRun, runKey, runSpec } from "@loraline/contracts";
import { ulid } from "ulid";
import { startStack } from "../gateway.ts";
import type { ScaleRow } from "../scale.ts";
import { percentile } from "../table.ts";

const runs = Number(process.env.BENCH_RUNS ?? 10_000);
const steps = Number(process.env.BENCH_STEPS ?? 100_000);
const tenant = "bench";

export async function scaleLists(): Promise<ScaleRow[]> {
  const spec = runSpec.parse({ base: "bench", adapter: "bench", dataset: ulid() });
  const ids = Array.from({ length: runs }, (_, n) => ulid(Date.now() - 1000 * (runs - n)));
  const watched = ids[0] ?? "";
  await using stack = await startStack(async ({ nc }) => {
    // Without waiting for each acknowledgement, as `publish` would.
    const put = (subject: string, value: unknown): void => nc.publish(subject, JSON.stringify(value));
    for (const [n, id] of ids.entries()) {
      const time = new Date(Date.now() - 1000 * (runs - n)).toISOString();
      const at = { tenant, id };
      const state = foldRun(undefined, { type: events.runRequested.type, data: { spec }, at, time, seq: n + 1, trace: null });
      put(`$KV.${buckets.runs.name}.${runKey(at)}`, state);
      if (n % 500 === 0) await nc.flush();
    }
    for (let step = 1; step <= steps; step++) {
      const progress = { attempt: 1, phase: "train", step, totalSteps: steps, loss: 1 };
      put(`loraline.${tenant}.run.${watched}.progress.v1`, progress);
      const checkpoint = { kind: "checkpoint", digest: `sha256:${step.toString(16).padStart(64, "0")}`, size: 1 };
      put(`loraline.${tenant}.run.${watched}.checkpointed.v1`, { attempt: 1, step, checkpoint });
      if (step % 500 === 0) await nc.flush();
    }
    await nc.flush();
  });
  const { gateway, key } = stack;
  // The projector folds the events meanwhile, which is not what is measured.
  for (let last = await gateway.cpu(); ; last = await gateway.cpu()) {
    await new Promise((resolve) => setTimeout(resolve, 2000));
    if ((await gateway.cpu()) - last < 0.2) break;
  }
  const measure = async (path: string, count: number) => {
    const times: number[] = [];
    const [rss, from] = [await gateway.rss(), await gateway.cpu()];
    for (let n = 0; n < count; n++) {
      const began = performance.now();
      const answer = await fetch(`${gateway.said}${path}`, { headers: { authorization: `Bearer ${key}` } });
      const { data } = (await answer.json()) as { data: unknown[] };
      if (!answer.ok || data.length !== 20) throw new Error(`${path}: ${answer.status}, ${data?.length} items`);
      times.push(performance.now() - began);
    }
    const cpu = (((await gateway.cpu()) - from) * 1000) / count;
    return {
      value: `${cpu.toFixed(0)} ms of CPU`,
      detail: `p50 ${percentile(times, 50)} ms; the gateway grew by ${Math.round((await gateway.rss()) - rss)} MiB`,
    };
  };
  const jobs = "/v1/fine_tuning/jobs";
  const middle = ids[Math.floor(runs / 2)] ?? "";
  return [
    {
      what: `lists: a page of 20 of ${runs} jobs, the first`,
      ...(await measure(`${jobs}?limit=20`, 20)),
      before: "325 ms of CPU, all entries read",
      limit: "no whole buckets",
    },
    {
      what: `lists: a page of 20 of ${runs} jobs, in the middle`,
      ...(await measure(`${jobs}?limit=20&after=ftjob-${middle}`, 20)),
      before: "360 ms of CPU",
      limit: "no whole buckets",
    },
    {
      what: `lists: a page of 20 events of a run with ${steps} steps and as many checkpoints`,
      ...(await measure(`${jobs}/ftjob-${watched}/events?limit=20`, 10)),
      before: "53 ms of CPU at 5,000 of each, growing with their number",
      limit: "constant memory",
    },
  ];
}
