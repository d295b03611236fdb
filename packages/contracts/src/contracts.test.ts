import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Parser } from "@asyncapi/parser";
import { Ajv } from "ajv";
import addFormats from "ajv-formats";
import { expect, test } from "vitest";
import { chartFiles, docFiles, generatedFiles, trainerFiles } from "./generate/generate.ts";
import {
  consumers,
  eventOfType,
  events,
  filterFor,
  buckets,
  natsPermissions,
  parseSubject,
  streamOf,
  streams,
  subjectFor,
  version,
} from "./index.ts";

const root = join(import.meta.dirname, "..");
const samples = readdirSync(join(root, "samples")).map((file) => ({
  file,
  type: file.replace(/(?:\.\d+)?\.json$/, ""),
  data: JSON.parse(readFileSync(join(root, "samples", file), "utf8")) as unknown,
}));

test("every event version that ever shipped has a sample", () => {
  expect([...new Set(samples.map(({ type }) => type))].sort()).toEqual(
    Object.values(events)
      .map(({ type }) => type)
      .sort(),
  );
});

/** Samples in an older spelling → those that say the same in today's. */
const respelt: Readonly<Record<string, string>> = {
  "run.requested.v1.1.json": "run.requested.v1.json",
  "run.requested.v1.3.json": "run.requested.v1.2.json",
};

test.each(samples)("sample $file still parses, and says the same after parsing", ({ file, type, data }) => {
  const event = eventOfType(type);
  const today = samples.find((sample) => sample.file === respelt[file])?.data ?? data;
  expect(event?.data.parse(data)).toEqual(today);
});

test.each(samples)("sample $file is valid by the AsyncAPI document alone", ({ type, data }) => {
  const document = JSON.parse(generatedFiles().get("asyncapi.json")!) as {
    channels: Record<string, { title: string }>;
    components: { schemas: Record<string, object> };
  };
  const key = Object.entries(document.channels).find(([, channel]) => channel.title === type)![0];
  const ajv = new Ajv({ strict: false, allErrors: true });
  (addFormats as unknown as (ajv: Ajv) => void)(ajv);
  const validate = ajv.compile(document.components.schemas[key]!);
  expect(validate(data), JSON.stringify(validate.errors)).toBe(true);
  expect(validate({})).toBe(
    [
      "dataset.deleted.v1",
      "run.cancel-requested.v1",
      "run.pause-requested.v1",
      "run.resume-requested.v1",
      "run.cancelled.v1",
      "adapter.rollback-requested.v1",
      "adapter.delete-requested.v1",
    ].includes(type),
  );
});

test("the generated files are those of the sources (`make generate` writes them)", () => {
  const kept = new Map(
    readdirSync(join(root, "generated"), { recursive: true, encoding: "utf8" })
      .filter((path) => /\.(?:json|yaml)$/.test(path))
      .map((path) => [path, readFileSync(join(root, "generated", path), "utf8")]),
  );
  expect([...kept.keys()].sort()).toEqual([...generatedFiles().keys()].sort());
  for (const [path, text] of generatedFiles()) expect(kept.get(path), path).toBe(text);
  const chart = join(root, "../../helm/loraline");
  for (const [path, text] of chartFiles()) expect(readFileSync(join(chart, path), "utf8"), path).toBe(text);
  const trainer = join(root, "../../services/train/trainer");
  for (const [path, text] of trainerFiles()) expect(readFileSync(join(trainer, path), "utf8"), path).toBe(text);
  for (const [path, text] of docFiles()) expect(readFileSync(join(root, "../../docs", path), "utf8"), path).toBe(text);
});

test("the repository and the chart have the version that the programs tell", () => {
  const manifest = JSON.parse(readFileSync(join(root, "../../package.json"), "utf8")) as { version: string };
  const chart = readFileSync(join(root, "../../helm/loraline/Chart.yaml"), "utf8");
  expect(manifest.version).toBe(version);
  expect(/^version: (.+)$/m.exec(chart)?.[1]).toBe(version);
  expect(/^appVersion: "(.+)"$/m.exec(chart)?.[1]).toBe(version);
});

test("the AsyncAPI document has no errors by the official parser", async () => {
  const diagnostics = await new Parser().validate(generatedFiles().get("asyncapi.json")!);
  expect(diagnostics.filter(({ severity }) => severity === 0)).toEqual([]);
  // The parser takes seconds over a document of this size.
}, 60_000);

test("subjects carry tenant and id, and refuse tokens that would change their meaning", () => {
  const at = { tenant: "acme", id: "01KB0000000000000000000DS1" };
  const subject = subjectFor(events.datasetReceived, at);
  expect(subject).toBe("loraline.acme.dataset.01KB0000000000000000000DS1.received.v1");
  expect(parseSubject(subject)).toEqual({ ...at, noun: "dataset", type: "dataset.received.v1" });
  for (const bad of [
    { ...at, tenant: "*" },
    { ...at, tenant: "a.b" },
    { ...at, id: ">" },
    { ...at, id: "01kb" },
  ]) {
    expect(() => subjectFor(events.datasetReceived, bad)).toThrow(/must be a ULID|use 1 to 63/);
  }
  const others = [
    "loraline.acme.dataset.x",
    `other.acme.dataset.${at.id}.received.v1`,
    `loraline.acme.pod.${at.id}.received.v1`,
    `loraline.acme.constructor.${at.id}.received.v1`,
    `loraline.ACME.dataset.${at.id}.received.v1`,
    "loraline.acme.dataset.x.received.v1",
    "",
  ];
  for (const other of others) {
    expect(parseSubject(other)).toBeUndefined();
  }
});

test("each event goes to exactly one stream, and each consumer's events are in its stream", () => {
  const filters = Object.values(events).map((event) => filterFor(event));
  const ours = Object.values(streams).flatMap((stream): readonly string[] => stream.subjects);
  const taken = ours.filter((subject) => !["dlq.>", "spans.*", "stored.*.*", "audit.*", "audit.*.everyday"].includes(subject));
  expect([...taken].sort()).toEqual([...filters].sort());
  for (const consumer of Object.values(consumers)) {
    for (const event of consumer.events) expect(streamOf(event).name, `${consumer.durable} ${event.type}`).toBe(consumer.stream.name);
  }
});

test("the chart gives each KV bucket a size", () => {
  const template = readFileSync(join(root, "../../helm/loraline/templates/nats.yaml"), "utf8");
  for (const name of Object.keys(buckets))
    expect(template, `loraline.streamLimits has no size for ${name}`).toMatch(new RegExp(`(dict|list) [^\\n]*"${name}"`));
});

// NATS refuses whatever is not in this table, and only in an installation.
test("each event may be published by one of our programs, and each consumer may be read by exactly one", () => {
  const may = (subject: string): string[] =>
    Object.entries(natsPermissions.services).flatMap(([user, { publish }]) => (publish.allow.includes(subject) ? [user] : []));
  for (const event of Object.values(events)) expect(may(filterFor(event)), `who publishes ${event.type}`).not.toEqual([]);
  for (const { durable, stream } of Object.values(consumers))
    expect(may(`$JS.ACK.${stream.name}.${durable}.>`), `who acknowledges what ${durable} gets`).toHaveLength(1);
});

// NATS brings a message into another account once for each import that it matches: events would be stored twice, and of two
// pulls that were made from one, the second gets a message that nobody waits for until the ack wait is over.
test("no subject of what a user may publish is in the list twice", () => {
  const overlap = ([a, ...as]: string[], [b, ...bs]: string[]): boolean => {
    if (a === undefined || b === undefined) return a === b;
    if (a === ">" || b === ">") return true;
    return (a === b || a === "*" || b === "*") && overlap(as, bs);
  };
  for (const [user, { publish }] of Object.entries({ ...natsPermissions.services, tenant: natsPermissions.tenant })) {
    const all = [...publish.allow, ...(natsPermissions.perTenant[user] ?? []).map((subject) => subject.replaceAll("{tenant}", "acme"))];
    for (const [i, one] of all.entries())
      for (const other of all.slice(i + 1)) expect(overlap(one.split("."), other.split(".")), `${user}: ${one} and ${other}`).toBe(false);
  }
});
