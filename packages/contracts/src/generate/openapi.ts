/** Pure: makes the reference of the HTTP API (OpenAPI 3.1) from the table of routes and from the schemas with which the gateway parses. */
import { z } from "zod";
import * as loraline from "../http/loraline.ts";
import * as openai from "../http/openai.ts";
import * as inference from "../http/inference.ts";
import { type HttpRoute, httpRoutes, type RefusalStatus, refusalStatuses, routeTags } from "../http/routes.ts";
import { datasetReport } from "../records.ts";
import { datasetMapping } from "../spec/dataset-mapping.ts";
import { runSpec } from "../spec/run-spec.ts";
import { adapterState, datasetState, replicaState, runState } from "../state.ts";
import type { Scope } from "../api-key.ts";
import { version } from "../version.ts";

type Json = Record<string, unknown>;

/** Names of the schemas in answers, under `components.schemas`. An answer that is not listed here is named after its operation. */
const answerNames: Readonly<Record<string, z.ZodType>> = {
  Adapter: loraline.adapterView,
  AdapterState: adapterState,
  ChatCompletion: inference.chatAnswer,
  ChatCompletionChunk: inference.chatChunk,
  Completion: inference.completionAnswer,
  Dataset: datasetState,
  DatasetReport: datasetReport,
  Engine: loraline.engineView,
  Error: openai.errorBody,
  FailedMessage: loraline.deadLetterView,
  File: openai.fileObject,
  FineTuningJob: openai.jobObject,
  FineTuningJobCheckpoint: openai.jobCheckpointObject,
  FineTuningJobEvent: openai.jobEventObject,
  Key: loraline.keyView,
  Limit: loraline.limitView,
  LimitDeleted: loraline.limitDeleted,
  Model: openai.modelObject,
  Readiness: loraline.readiness,
  Replica: replicaState,
  Run: runState,
  RunSpec: runSpec,
};
/** The same for request bodies. A schema that is used in both has two names, because fields that a body may omit are always in an answer. */
const bodyNames: Readonly<Record<string, z.ZodType>> = { DatasetMapping: datasetMapping, LimitBody: loraline.limitBody };

const isFile = (schema: z.ZodType): boolean => schema._zod.def.type === "file";
const capital = (text: string): string => text.replace(/^./, (letter) => letter.toUpperCase());
const schemaRef = (name: string): Json => ({ $ref: `#/components/schemas/${name}` });
/** The routes of the reference: all except those that refuse every request. */
const allRoutes: readonly (readonly [string, HttpRoute])[] = Object.entries<HttpRoute>(httpRoutes).filter(
  ([, { answer, raw }]) => answer !== undefined || raw !== undefined,
);

const jsonSchema = { target: "draft-2020-12", reused: "inline", unrepresentable: "any", override: adjust } as const;

/** Writes files as OpenAPI 3.1 does, and leaves answers open: they may get new fields later, which clients must accept. */
function adjust({ zodSchema, jsonSchema: made }: { zodSchema: z.core.$ZodTypes; jsonSchema: Json }): void {
  const { def } = zodSchema._zod;
  if (def.type === "file") {
    for (const key of ["format", "contentEncoding", "minLength", "maxLength"]) delete made[key];
    Object.assign(made, { type: "string", contentMediaType: "application/octet-stream" });
  }
  if (def.type === "object" && def.catchall === undefined) delete made["additionalProperties"];
}

/** The schemas by name; they refer to each other by these names. */
function named(
  schemas: Readonly<Record<string, z.ZodType>>,
  io: "input" | "output",
): { schemas: Json; nameOf: ReadonlyMap<z.ZodType, string> } {
  const registry = z.registry<{ id: string }>();
  const nameOf = new Map<z.ZodType, string>();
  for (const [id, schema] of Object.entries(schemas)) {
    if (nameOf.has(schema)) continue;
    registry.add(schema, { id });
    nameOf.set(schema, id);
  }
  const made = z.toJSONSchema(registry, { ...jsonSchema, io, uri: (id) => schemaRef(id)["$ref"] as string });
  const plain = Object.entries(made.schemas).map(([id, { $schema: _schema, $id: _id, ...rest }]) => [id, rest] as const);
  return { schemas: Object.fromEntries(plain), nameOf };
}

const answers = () =>
  named(
    {
      ...answerNames,
      ...Object.fromEntries(
        allRoutes.flatMap(([id, { answer, event }]) => [
          ...(answer === undefined ? [] : [[`${capital(id)}Answer`, answer] as const]),
          ...(event === undefined ? [] : [[`${capital(id)}Event`, event] as const]),
        ]),
      ),
    },
    "output",
  );
const bodies = () =>
  named(
    {
      ...bodyNames,
      ...Object.fromEntries(
        allRoutes.flatMap(([id, { body, form }]) => [
          ...(body === undefined ? [] : [[`${capital(id)}Body`, body] as const]),
          ...(form === undefined ? [] : [[`${capital(id)}Form`, form] as const]),
        ]),
      ),
    },
    "input",
  );

function nameIn(nameOf: ReadonlyMap<z.ZodType, string>, schema: z.ZodType): string {
  const name = nameOf.get(schema);
  if (name === undefined) throw new Error("a route has a schema that is among neither answers nor bodies");
  return name;
}

const parameterRef = (name: string): Json => ({ $ref: `#/components/parameters/${name}` });
const headerRefs = (...names: string[]): Json => Object.fromEntries(names.map((name) => [name, { $ref: `#/components/headers/${name}` }]));

function parametersOf({ path, query, idempotent, sticky }: HttpRoute): Json[] {
  const inPath = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => ({ name, in: "path", required: true, schema: { type: "string" } }));
  const { properties = {}, required = [] } =
    query === undefined
      ? {}
      : (z.toJSONSchema(query, { ...jsonSchema, io: "input" }) as { properties?: Record<string, Json>; required?: string[] });
  const inQuery = Object.entries(properties).map(([name, { description, ...schema }]) => ({
    name,
    in: "query",
    required: required.includes(name),
    ...(description === undefined ? {} : { description }),
    schema,
  }));
  return [
    ...inPath,
    ...inQuery,
    ...(idempotent === true ? [parameterRef("idempotencyKey")] : []),
    ...(sticky === true ? [parameterRef("sticky"), parameterRef("system")] : []),
  ];
}

function bodyOf({ body, form, bodyOptional }: HttpRoute, nameOf: ReadonlyMap<z.ZodType, string>): Json {
  if (body === undefined && form === undefined) return {};
  const refTo = (schema: z.ZodType): Json => schemaRef(nameIn(nameOf, schema));
  // Form fields that are neither files nor texts are sent as JSON text.
  const json = Object.entries(form?.shape ?? {}).filter(([, field]) => !isFile(field as z.ZodType) && !isText(field as z.ZodType));
  const encoding = Object.fromEntries(json.map(([name]) => [name, { contentType: "application/json" }]));
  return {
    requestBody: {
      required: bodyOptional !== true,
      content: {
        ...(body === undefined ? {} : { "application/json": { schema: refTo(body) } }),
        ...(form === undefined ? {} : { "multipart/form-data": { schema: refTo(form), encoding } }),
      },
    },
  };
}
const isText = (schema: z.ZodType): boolean => ["string", "literal", "enum"].includes(schema._zod.def.type);

function successOf(route: HttpRoute, nameOf: ReadonlyMap<z.ZodType, string>): Json {
  const { status = 200, answer, event, raw, sticky, scopes } = route;
  const refTo = (schema: z.ZodType): Json => schemaRef(nameIn(nameOf, schema));
  const description =
    raw?.description ??
    (event === undefined
      ? status === 202
        ? "It is under way."
        : "Done."
      : "The answer; with `stream: true` server-sent events, each of whose data is as shown here (chats, completions: at the end `data: [DONE]`).");
  return {
    [status]: {
      description,
      headers: headerRefs("x-request-id", ...(scopes.length > 0 ? ["traceparent"] : []), ...(sticky === true ? answerHeaders : [])),
      content: {
        ...(answer === undefined ? {} : { "application/json": { schema: refTo(answer) } }),
        ...(event === undefined ? {} : { "text/event-stream": { schema: refTo(event) } }),
        ...(raw === undefined ? {} : { [raw.type]: { schema: { type: "string", contentMediaType: raw.type } } }),
      },
    },
  };
}
const answerHeaders = ["x-loraline-version", "x-loraline-replica", "x-loraline-system"];

function refusalsOf({ refusals, scopes, body, form }: HttpRoute): RefusalStatus[] {
  const withKey: readonly RefusalStatus[] = scopes.length === 0 ? [] : [401, 403, 500, 503];
  const withBody: readonly RefusalStatus[] = body === undefined && form === undefined ? [] : [408];
  return [...new Set([...refusals, ...withKey, ...withBody])].toSorted((a, b) => a - b);
}
const refusalName = (status: RefusalStatus): string => `Refusal${status}`;

/** The scopes of API keys in words (for programs: `x-scopes`), because OpenAPI has scopes only for OAuth. */
function scopesInWords(scopes: readonly Scope[], alsoNeeds: readonly Scope[]): string {
  const code = (scope: Scope): string => `\`${scope}\``;
  return `Scope of the key: ${scopes.map(code).join(" or ")}${alsoNeeds.map((scope) => `, and ${code(scope)}`).join("")}.`;
}

function operationOf(id: string, route: HttpRoute, names: Record<"answers" | "bodies", ReadonlyMap<z.ZodType, string>>): Json {
  const { tag, summary, description = `${summary}.`, scopes, alsoNeeds = [] } = route;
  const notReady =
    id === "getReadiness"
      ? { 503: { description: "Not ready.", content: { "application/json": { schema: schemaRef("Readiness") } } } }
      : {};
  return {
    operationId: id,
    tags: [tag],
    summary,
    description: scopes.length === 0 ? description : `${description}\n\n${scopesInWords(scopes, alsoNeeds)}`,
    ...(routeTags[tag].openai ? { "x-openai": true } : {}),
    security: scopes.length === 0 ? [] : [{ apiKey: [] }],
    ...(scopes.length === 0 ? {} : { "x-scopes": { anyOf: scopes, ...(alsoNeeds.length === 0 ? {} : { allOf: alsoNeeds }) } }),
    parameters: parametersOf(route),
    ...bodyOf(route, names.bodies),
    responses: {
      ...successOf(route, names.answers),
      ...notReady,
      ...Object.fromEntries(refusalsOf(route).map((status) => [status, { $ref: `#/components/responses/${refusalName(status)}` }])),
    },
  };
}

export function openApi(): Json {
  const answer = answers();
  const body = bodies();
  const names = { answers: answer.nameOf, bodies: body.nameOf };
  const paths: Record<string, Json> = {};
  for (const [id, route] of allRoutes) {
    paths[route.path] = { ...paths[route.path], [route.method.toLowerCase()]: operationOf(id, route, names) };
  }
  return {
    openapi: "3.1.0",
    info: {
      title: "Loraline HTTP API",
      version,
      summary: "A dataset goes in, a proven adapter comes out and answers.",
      description: [
        "Files, fine-tuning, models and inference are OpenAI's own API (`x-openai`): its SDKs work with the server's address and `/v1` as base URL.",
        "What OpenAI has no word for is below `/v1/loraline/`.",
        "",
        "Every refusal has OpenAI's error body; its `code` is stable and explained in docs/errors.md.",
        "Every answer carries `x-request-id`, which the server's log has too.",
      ].join("\n"),
      contact: { name: "Loraline", url: "https://github.com/loraline/loraline" },
      license: { name: "Apache-2.0", identifier: "Apache-2.0" },
    },
    servers: [{ url: "http://127.0.0.1:8420", description: "`loraline up` on this machine." }],
    tags: Object.entries(routeTags).map(([name, { description, openai }]) => ({
      name,
      description,
      ...(openai ? { "x-openai": true } : {}),
    })),
    paths,
    components: {
      securitySchemes: {
        apiKey: {
          type: "http",
          scheme: "bearer",
          description:
            "An API key, or a token of the OIDC issuer that the server trusts. Which scopes of a key a route asks for stands in its description, and as `x-scopes` (any of `anyOf`, and all of `allOf`).",
        },
      },
      parameters: {
        idempotencyKey: {
          name: "Idempotency-Key",
          in: "header",
          description: "A request that is sent again with the same key, within twelve hours, is done once.",
          schema: { type: "string", minLength: 1, maxLength: 255 },
        },
        system: {
          name: "x-loraline-system",
          in: "header",
          description: "`off`: a conversation without a system prompt stays as it is, also where the version was trained with one.",
          schema: { type: "string", enum: ["off"] },
        },
        sticky: {
          name: "x-loraline-sticky",
          in: "header",
          description: "While a canary is under way: who sends the same text gets the same version.",
          schema: { type: "string" },
        },
      },
      headers: {
        "x-request-id": { description: "Names the request in the server's log.", schema: { type: "string" } },
        traceparent: { description: "W3C trace context of the request's span, where it has one.", schema: { type: "string" } },
        "Retry-After": { description: "Seconds after which to ask again.", schema: { type: "integer", minimum: 0 } },
        "x-loraline-version": { description: "The version that answered, or `base`.", schema: { type: "string" } },
        "x-loraline-replica": { description: "The replica that answered.", schema: { type: "string" } },
        "x-loraline-system": {
          description: "`applied`: the system prompt that the version was trained with was put before the conversation, which had none.",
          schema: { type: "string" },
        },
      },
      responses: Object.fromEntries(
        Object.entries(refusalStatuses).flatMap(([status, description]) =>
          allRoutes.some(([, route]) => refusalsOf(route).some((one) => String(one) === status))
            ? [
                [
                  refusalName(Number(status) as RefusalStatus),
                  {
                    description,
                    headers: headerRefs("x-request-id", ...(["429", "503"].includes(status) ? ["Retry-After"] : [])),
                    content: { "application/json": { schema: schemaRef("Error") } },
                  },
                ],
              ]
            : [],
        ),
      ),
      schemas: Object.fromEntries(Object.entries({ ...answer.schemas, ...body.schemas }).toSorted(([a], [b]) => (a < b ? -1 : 1))),
    },
  };
}
