/** The line as the CLI sees it: OpenAI's own client for what OpenAI has a word for, plain HTTP for the rest. */
import {
  adapterList,
  adapterView,
  type canarySettings,
  datasetList,
  datasetReport,
  datasetState,
  deadLetterList,
  deadLetterView,
  engineList,
  type EngineView,
  errorBody,
  type importBody,
  runList,
  runState,
  traceView,
  type Placement,
} from "@loraline/contracts";
import { findLine } from "@loraline/local/state-dir";
import OpenAI from "openai";
import type { z } from "zod";
import { causeOf, exitCodeOfStatus, exitCodes, Failure } from "./failure.ts";

export interface LineAddress {
  url: string;
  apiKey: string;
}

export interface LineClient extends LineAddress {
  openai: OpenAI;
  /** Any route below /v1/loraline/; `body` is sent as JSON, or as a form. */
  call<T extends z.ZodType>(schema: T, method: "GET" | "POST" | "PUT" | "DELETE", path: string, body?: unknown): Promise<z.output<T>>;
  runs(): Promise<z.output<typeof runList>["data"]>;
  run(id: string): Promise<z.output<typeof runState>>;
  trace(runId: string): Promise<z.output<typeof traceView>>;
  datasets(): Promise<z.output<typeof datasetList>["data"]>;
  dataset(datasetId: string): Promise<z.output<typeof datasetState>>;
  importDataset(body: z.input<typeof importBody>): Promise<z.output<typeof datasetState>>;
  report(datasetId: string): Promise<z.output<typeof datasetReport>>;
  adapters(): Promise<z.output<typeof adapterList>["data"]>;
  adapter(name: string): Promise<z.output<typeof adapterView>>;
  /** @param canary - step by step; `{}`: with the line's defaults. */
  promote(name: string, version: number, canary?: z.input<typeof canarySettings>): Promise<z.output<typeof adapterView>>;
  rollback(name: string, version: number | undefined): Promise<z.output<typeof adapterView>>;
  place(name: string, placement: Placement): Promise<z.output<typeof adapterView>>;
  engines(): Promise<EngineView[]>;
  letters(): Promise<z.output<typeof deadLetterList>["data"]>;
  letter(seq: number): Promise<z.output<typeof deadLetterView>>;
  redrive(seq: number): Promise<z.output<typeof deadLetterView>>;
}

/**
 * Finds the line: what was given, or the one that runs on the state directory.
 * @throws Failure NO_LINE, API_KEY_MISSING
 */
export async function findAddress(given: { url?: string | undefined; key?: string | undefined; state: string }): Promise<LineAddress> {
  const local = await findLine(given.state);
  const url = given.url ?? local?.url;
  if (url === undefined) {
    throw new Failure(
      exitCodes.unreachable,
      "NO_LINE",
      `no line runs on ${given.state}. Start one with \`loraline up\`, or name one with --url and --key (LORALINE_URL, LORALINE_API_KEY).`,
    );
  }
  const normal = url.replace(/\/+$/, "").replace(/\/v1$/, "");
  const apiKey = given.key ?? (normal === local?.url ? local.apiKey : undefined);
  if (apiKey === undefined) {
    throw new Failure(exitCodes.unauthorized, "API_KEY_MISSING", `no API key for ${normal}. Give one with --key or LORALINE_API_KEY.`);
  }
  return { url: normal, apiKey };
}

export function connectLine({ url, apiKey }: LineAddress): LineClient {
  const call: LineClient["call"] = async (schema, method, path, body) => {
    const response = await fetch(`${url}/v1/loraline/${path}`, {
      method,
      headers: {
        authorization: `Bearer ${apiKey}`,
        ...(body === undefined || body instanceof FormData ? {} : { "content-type": "application/json" }),
      },
      ...(body === undefined ? {} : { body: body instanceof FormData ? body : JSON.stringify(body) }),
    }).catch((error: unknown) => {
      throw new Failure(exitCodes.unreachable, "UNREACHABLE", `the line at ${url} does not answer: ${causeOf(error)}`, { cause: error });
    });
    const text = await response.text();
    const json = parseJson(text);
    if (response.ok) {
      const parsed = schema.safeParse(json);
      if (parsed.success) return parsed.data;
      throw new Failure(
        exitCodes.failed,
        "UNEXPECTED_ANSWER",
        `${url} answered in another shape than expected: is it a Loraline of this version?`,
        {
          cause: parsed.error,
        },
      );
    }
    const refused = errorBody.safeParse(json);
    const { code, message, param } = refused.success
      ? refused.data.error
      : { code: null, message: `${response.status} ${text.slice(0, 200)}`, param: null };
    throw new Failure(exitCodeOfStatus(response.status), code ?? "HTTP_ERROR", message, { param });
  };
  const ask = <T extends z.ZodType>(schema: T, path: string, body?: unknown): Promise<z.output<T>> =>
    call(schema, body === undefined ? "GET" : "POST", path, body);
  const part = encodeURIComponent;
  return {
    url,
    apiKey,
    openai: new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 2 }),
    call,
    runs: async () => (await ask(runList, "runs")).data,
    run: (id) => ask(runState, `runs/${part(id)}`),
    trace: (id) => ask(traceView, `runs/${part(id)}/trace`),
    datasets: async () => (await ask(datasetList, "datasets")).data,
    dataset: (id) => ask(datasetState, `datasets/${part(id)}`),
    importDataset: (body) => ask(datasetState, "datasets/import", body),
    report: (id) => ask(datasetReport, `datasets/${part(id)}/report`),
    adapters: async () => (await ask(adapterList, "adapters")).data,
    adapter: (name) => ask(adapterView, `adapters/${part(name)}`),
    promote: (name, version, canary) =>
      ask(adapterView, `adapters/${part(name)}/promote`, { version, ...(canary === undefined ? {} : { canary }) }),
    rollback: (name, version) => ask(adapterView, `adapters/${part(name)}/rollback`, version === undefined ? {} : { version }),
    place: (name, placement) => ask(adapterView, `adapters/${part(name)}/place`, placement),
    engines: async () => (await ask(engineList, "engines")).data,
    letters: async () => (await ask(deadLetterList, "dlq")).data,
    letter: (seq) => ask(deadLetterView, `dlq/${seq}`),
    redrive: (seq) => ask(deadLetterView, `dlq/${seq}/redrive`, {}),
  };
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
