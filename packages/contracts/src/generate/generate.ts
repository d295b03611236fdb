/** Pure: AsyncAPI 3, OpenAPI 3.1 and JSON Schema from the declarations. `write-generated-main.ts` writes them; a test compares them. */
import { z } from "zod";
import { chartValues } from "./chart-values.ts";
import { crds } from "./crds.ts";
import type { EventDef } from "../events/define-event.ts";
import { engineRecord } from "../engine.ts";
import { engineKinds } from "../engine-kinds.ts";
import { errorsPage } from "./errors-page.ts";
import { events } from "../events/events.ts";
import * as loraline from "../http/loraline.ts";
import * as openai from "../http/openai.ts";
import { natsPermissions } from "../events/nats-permissions.ts";
import { datasetManifest, datasetReport, record, tokenManifest } from "../records.ts";
import { runSpec } from "../spec/run-spec.ts";
import {
  adapterState,
  assignment,
  budgetState,
  datasetState,
  limitState,
  replicaHolding,
  replicaReport,
  runState,
  trafficState,
  usageState,
} from "../state.ts";
import { withKubernetes } from "./kubernetes-shapes.ts";
import { openApi } from "./openapi.ts";
import { buckets, type ConsumerDef, consumers, streamOf, streams } from "../events/streams.ts";
import { ruleGroups, runbookPage } from "../monitoring/alerts.ts";
import { dashboards, grafanaDashboard } from "../monitoring/dashboards.ts";
import { runSpecPage } from "./run-spec-page.ts";
import { trainerFields } from "./trainer-fields.ts";
import { adapterManifest, checkpointManifest, evidence, progressLine, trainerResult, trainerSpec } from "../trainer.ts";

type Json = Record<string, unknown>;

/** Draft 7, because AsyncAPI's own schema format is based on it; `io: input`, because readers of the document write messages. */
function schemaOf(schema: z.ZodType): Json {
  const { $schema: _dropped, ...rest } = z.toJSONSchema(schema, { target: "draft-07", io: "input", reused: "inline" }) as Json;
  return rest;
}

const all: readonly EventDef[] = Object.values(events);
const allConsumers: readonly ConsumerDef[] = Object.values(consumers);

/** `run.requested.v1` → `runRequestedV1`, a component key that AsyncAPI allows. */
const keyOf = (event: EventDef): string => event.type.replace(/[.-](\w)/g, (_, letter: string) => letter.toUpperCase());

const headerSchema: Json = {
  type: "object",
  description:
    "CloudEvents 1.0, NATS binding, binary mode. Only Nats-Msg-Id and traceparent change what Loraline does; a plain NATS client may leave out the rest, since the subject decides the type.",
  properties: {
    "Nats-Msg-Id": {
      type: "string",
      description: "Makes publishing again within the dedupe window harmless. Ours: <tenant>/<noun>/<id>/<verb>.v<n>[/<key>]",
    },
    traceparent: { type: "string", description: "W3C trace context; the run continues this trace." },
    "content-type": { const: "application/json" },
    "ce-specversion": { const: "1.0" },
    "ce-id": { type: "string" },
    "ce-source": { type: "string", description: "URI reference such as /loraline/gateway" },
    "ce-type": { type: "string", description: "<noun>.<verb>.v<n>" },
    "ce-subject": { type: "string", description: "<tenant>/<id>" },
    "ce-time": { type: "string", format: "date-time" },
  },
};

const idDescriptions = {
  dataset: "ULID of the dataset; for a new one, make a new ULID.",
  run: "ULID of the run; for a new one, make a new ULID.",
  adapter: "Name of the adapter.",
  chunk: "Hash of all that decides the result, in hex.",
} as const;

/** The document for authors of NATS clients: subjects, payloads, streams and consumers. */
function asyncApi(): Json {
  return {
    asyncapi: "3.0.0",
    info: {
      title: "Loraline events",
      version: "1.0.0",
      license: { name: "Apache-2.0" },
      description: [
        "Everything the services of Loraline say to each other, and the API for programs that speak NATS.",
        "To start a run: publish `run.requested.v1` with a new ULID on its subject, through JetStream so that you get an acknowledgement.",
        "A tenant's client is acknowledged by the stream `DOOR_<tenant>`, from where the gateway takes commands, fifty a second; one that waits there is not lost.",
        "`maximum messages exceeded` instead: try again later. What breaks the contract or a quota becomes a failed message (`GET /v1/loraline/dlq`).",
        "Then follow `loraline.<tenant>.run.<id>.>`: the run ends with `served`, `rejected`, `failed` or `cancelled`.",
      ].join("\n"),
    },
    defaultContentType: "application/json",
    servers: { local: { host: "127.0.0.1:4222", protocol: "nats", description: "`loraline up` prints the address." } },
    channels: Object.fromEntries(
      all.map((event) => [
        keyOf(event),
        {
          address: `loraline.{tenant}.${event.noun}.{id}.${event.tail}`,
          title: event.type,
          description: event.summary,
          parameters: {
            tenant: { description: "Tenant: 1 to 63 lowercase letters, digits or dashes. `loraline up` uses `local`." },
            id: { description: idDescriptions[event.noun] },
          },
          messages: { [keyOf(event)]: { $ref: `#/components/messages/${keyOf(event)}` } },
          "x-jetstream": {
            stream: streamOf(event).name,
            consumers: allConsumers
              .filter((consumer) => consumer.events.includes(event))
              .map(({ durable, ackWaitMs, maxDeliver, concurrency }) => ({ durable, ackWaitMs, maxDeliver, concurrency })),
          },
        },
      ]),
    ),
    operations: Object.fromEntries(
      all.map((event) => [
        `send${keyOf(event).replace(/^./, (letter) => letter.toUpperCase())}`,
        { action: "send", summary: event.summary, channel: { $ref: `#/channels/${keyOf(event)}` } },
      ]),
    ),
    components: {
      messages: Object.fromEntries(
        all.map((event) => [
          keyOf(event),
          {
            name: event.type,
            title: event.type,
            summary: event.summary,
            contentType: "application/json",
            headers: { $ref: "#/components/schemas/headers" },
            payload: { $ref: `#/components/schemas/${keyOf(event)}` },
          },
        ]),
      ),
      schemas: { headers: headerSchema, ...Object.fromEntries(all.map((event) => [keyOf(event), schemaOf(event.data)])) },
    },
    "x-streams": Object.values(streams),
    "x-kv-buckets": Object.values(buckets).map(({ name, description, ttlMs }) => ({ name, description, ttlMs })),
  };
}

/** JSON Schemas of everything except events, by file name. */
export function jsonSchemas(): Record<string, Json> {
  const schemas: Record<string, z.ZodType> = {
    "run-spec": runSpec,
    record,
    "dataset-manifest": datasetManifest,
    "dataset-report": datasetReport,
    "token-manifest": tokenManifest,
    "adapter-manifest": adapterManifest,
    "checkpoint-manifest": checkpointManifest,
    evidence,
    "trainer-spec": trainerSpec,
    "trainer-progress-line": progressLine,
    "trainer-result": trainerResult,
    "kv-runs": runState,
    "kv-datasets": datasetState,
    "kv-adapters": adapterState,
    "kv-assignments": assignment,
    "kv-replicas": replicaReport,
    "kv-holdings": replicaHolding,
    "kv-engines": engineRecord,
    "kv-traffic": trafficState,
    "kv-limits": limitState,
    "kv-budgets": budgetState,
    "kv-usage": usageState,
    "http-file": openai.fileObject,
    "http-create-job": openai.createJobBody,
    "http-job": openai.jobObject,
    "http-job-event": openai.jobEventObject,
    "http-job-checkpoint": openai.jobCheckpointObject,
    "http-model": openai.modelObject,
    "http-error": openai.errorBody,
    "http-trace": loraline.traceView,
    "http-adapters": loraline.adapterList,
    "http-add-adapter": loraline.addAdapterBody,
    "http-engines": loraline.engineList,
    "http-dead-letters": loraline.deadLetterList,
  };
  return Object.fromEntries(
    Object.entries(schemas).map(([name, schema]) => [
      name,
      { $schema: "http://json-schema.org/draft-07/schema#", title: name, ...schemaOf(schema) },
    ]),
  );
}

/** Every generated file: path below `generated/` to text. */
export function generatedFiles(): Map<string, string> {
  const text = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`;
  return new Map([
    ["asyncapi.json", text(asyncApi())],
    ["openapi.json", text(openApi())],
    ...Object.entries(jsonSchemas()).map(([name, schema]): [string, string] => [`schemas/${name}.json`, text(schema)]),
    ...crdFiles(),
  ]);
}

/** Generated files of the chart: path below the chart's folder to text. */
export function chartFiles(): Map<string, string> {
  const { $schema: _dropped, ...values } = z.toJSONSchema(chartValues, { target: "draft-07", io: "input", reused: "inline" }) as Json;
  const text = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`;
  return new Map([
    ...crdFiles(),
    ["values.schema.json", text({ $schema: "http://json-schema.org/draft-07/schema#", title: "loraline", ...withKubernetes(values) })],
    ["files/nats-permissions.json", text(natsPermissions)],
    ["files/engine-flags.json", text(engineFlags())],
    ["files/alerts.json", text(ruleGroups('namespace=~".*"'))],
    ...dashboards.map((dashboard): [string, string] => [`files/dashboards/${dashboard.name}.json`, text(grafanaDashboard(dashboard))]),
  ]);
}

/** Generated files of the trainer: path below the trainer's folder to text. */
export const trainerFiles = (): Map<string, string> =>
  new Map([
    [
      "spec_fields.json",
      `${JSON.stringify({ comment: "Generated from packages/contracts/src/spec by `make generate`.", ...trainerFields() }, null, 1)}\n`,
    ],
  ]);
/** The flags that `extraArgs` must not have, for each kind of engine. */
const engineFlags = (): Json =>
  Object.fromEntries(Object.entries(engineKinds).map(([kind, { ownFlags }]) => [kind, Object.fromEntries(ownFlags)]));

/** Generated files of the docs: path below docs/ to text. */
export const docFiles = (): Map<string, string> =>
  new Map([
    ["errors.md", errorsPage()],
    ["run-spec.md", runSpecPage()],
    ["runbook.md", runbookPage()],
  ]);

/** Path to text; below `generated/`, and below the chart's folder. */
const crdFiles = (): Map<string, string> =>
  new Map(
    Object.entries(crds()).map(([name, crd]) => [
      `crds/${name}`,
      `# Generated from packages/contracts/src/generate/crds.ts by \`make generate\`.\n${yamlOf(crd)}`,
    ]),
  );

/** Plain data as YAML in block style; strings are quoted wherever they could be taken for something else. */
function yamlOf(value: unknown, indent = ""): string {
  const scalar = (one: unknown): string =>
    typeof one === "string" && /^[A-Za-z][\w./-]*$/.test(one) && !/^(?:true|false|null|yes|no|on|off|y|n)$/i.test(one)
      ? one
      : JSON.stringify(one);
  const isBlock = (one: unknown): one is object => typeof one === "object" && one !== null && Object.keys(one).length > 0;
  if (!isBlock(value)) return `${indent}${scalar(value)}\n`;
  if (Array.isArray(value))
    return value.map((item) => `${indent}- ${(isBlock(item) ? yamlOf(item, `${indent}  `) : yamlOf(item)).trimStart()}`).join("");
  return Object.entries(value)
    .map(([key, one]) => `${indent}${scalar(key)}:${isBlock(one) ? `\n${yamlOf(one, `${indent}  `)}` : ` ${scalar(one)}\n`}`)
    .join("");
}
