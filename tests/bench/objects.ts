/** Measures put and get of a 200 MB blob on both backends: MB/s, and the growth of the process. */
import { randomBytes } from "node:crypto";
import { createWriteStream } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createJetStreamObjects, createS3Objects, type Objects } from "@loraline/objects";
import { spawnNatsServer, spawnS3Server } from "@loraline/testkit/servers";
import type { Row } from "./table.ts";

const megabytes = 200;

async function measure(name: string, objects: Objects, file: string): Promise<Row[]> {
  let peak = 0;
  const before = process.memoryUsage.rss();
  const sampler = setInterval(() => (peak = Math.max(peak, process.memoryUsage.rss())), 20);
  const putStart = performance.now();
  const ref = await objects.put("bench", "raw", { file });
  const putSeconds = (performance.now() - putStart) / 1000;
  const getStart = performance.now();
  let size = 0;
  for await (const chunk of await objects.get("bench", ref)) size += chunk.length;
  const getSeconds = (performance.now() - getStart) / 1000;
  clearInterval(sampler);
  if (size !== megabytes * 1e6) throw new Error(`${name}: got ${size} bytes back`);
  const growth = `RSS grew by ${Math.max(0, Math.round((peak - before) / 1e6))} MB at most`;
  return [
    { what: `objects: put ${megabytes} MB, ${name}`, value: `${Math.round(megabytes / putSeconds)} MB/s`, detail: growth },
    {
      what: `objects: get ${megabytes} MB, ${name}`,
      value: `${Math.round(megabytes / getSeconds)} MB/s`,
      detail: "digest verified while streaming",
    },
  ];
}

export async function benchObjects(): Promise<Row[]> {
  const dir = await mkdtemp(join(tmpdir(), "loraline-bench-"));
  const file = join(dir, "blob");
  const out = createWriteStream(file);
  for (let index = 0; index < megabytes; index++) {
    if (!out.write(randomBytes(1e6))) await new Promise((resolve) => out.once("drain", resolve));
  }
  await new Promise<void>((resolve, reject) => out.end((error?: Error | null) => (error ? reject(error) : resolve())));
  try {
    await using nats = await spawnNatsServer();
    const nc = await nats.connect();
    const rows = await measure("JetStream", await createJetStreamObjects(nc), file);
    await nc.close();
    await using s3 = await spawnS3Server();
    rows.push(...(await measure("S3", createS3Objects(s3), file)));
    return rows;
  } finally {
    await rm(dir, { recursive: true });
  }
}
