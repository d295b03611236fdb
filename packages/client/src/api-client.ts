/**
 * The HTTP API, typed: one method for each operation of the table of routes, under its id. Needs nothing but `fetch`, so it runs in
 * browsers too.
 */
import { type HttpRoute, httpRoutes, type HttpRoutes, type OperationId, routeTags } from "@loraline/contracts";
import { EventSourceParserStream } from "eventsource-parser/stream";
import type { z } from "zod";
import { ApiError, parseJson, refusalOf, unexpected, unreachable } from "./api-error.ts";

export interface ApiAddress {
  /** Without `/v1`. */
  url: string;
  /** Empty: none is sent. In a browser the cookie of its session speaks instead. */
  apiKey: string;
}

/** `{file_id}` in a path is a field `file_id` of the request. */
type PathFields<Path extends string> = Path extends `${string}{${infer Name}}${infer Rest}`
  ? { [Key in Name]: string | number } & PathFields<Rest>
  : unknown;
type QueryField<Route> = Route extends { query: infer Query extends z.ZodType } ? { query?: Partial<z.input<Query>> } : unknown;
type BodyField<Route> = Route extends { body: infer Body extends z.ZodType }
  ? Route extends { form: z.ZodType }
    ? { body: z.input<Body> | FormData }
    : Route extends { bodyOptional: true }
      ? { body?: z.input<Body> }
      : { body: z.input<Body> }
  : Route extends { form: z.ZodType }
    ? { body: FormData }
    : unknown;
interface CommonFields {
  signal?: AbortSignal;
  /** Default, where the operation takes one: a new one for each call, which is the same when the call is tried again. */
  idempotencyKey?: string;
}
/** Fields of the path beside `query` and `body`. */
export type Request<Id extends OperationId> = PathFields<HttpRoutes[Id]["path"]> &
  QueryField<HttpRoutes[Id]> &
  BodyField<HttpRoutes[Id]> &
  CommonFields;
/** The answer, parsed; the `Response` itself where it is no JSON. */
export type Answer<Id extends OperationId> = HttpRoutes[Id] extends { answer: infer Schema extends z.ZodType }
  ? z.output<Schema>
  : Response;

/** Operations that can answer with events. */
type StreamedId = { [Id in OperationId]: HttpRoutes[Id] extends { event: z.ZodType } ? Id : never }[OperationId];
type StreamedEvent<Id extends StreamedId> = HttpRoutes[Id] extends { event: infer Schema extends z.ZodType } ? z.output<Schema> : never;

export type ApiClient = ApiAddress & {
  /** @throws ApiError */
  [Id in OperationId]: Record<string, never> extends Request<Id>
    ? (request?: Request<Id>) => Promise<Answer<Id>>
    : (request: Request<Id>) => Promise<Answer<Id>>;
} & {
  /**
   * The data of the answer's events, as they come. `stream: true` is added to the body.
   * @throws ApiError also in the middle, when the engine breaks off.
   */
  stream<Id extends StreamedId>(id: Id, request: Request<Id>): AsyncGenerator<StreamedEvent<Id>, void, undefined>;
};

interface ApiClientOptions extends ApiAddress {
  /** Default: the platform's. */
  fetch?: typeof fetch;
  /** How often a call of one of OpenAI's operations is tried again, as OpenAI's own SDKs do. Default 2. */
  retries?: number;
}

export function createApiClient({ url, apiKey, fetch: send = fetch, retries = 2 }: ApiClientOptions): ApiClient {
  /** @returns an answer of success. */
  const ask = async (route: HttpRoute, request: AnyRequest): Promise<Response> => {
    const { body, signal } = request;
    const isForm = body instanceof FormData;
    const headers: Record<string, string> = {
      ...(route.scopes.length === 0 || apiKey === "" ? {} : { authorization: `Bearer ${apiKey}` }),
      ...(body === undefined || isForm ? {} : { "content-type": "application/json" }),
      ...(route.idempotent === true ? { "idempotency-key": request.idempotencyKey ?? randomKey() } : {}),
    };
    const init: RequestInit = {
      method: route.method,
      headers,
      ...(body === undefined ? {} : { body: isForm ? body : JSON.stringify(body) }),
      ...(signal === undefined ? {} : { signal }),
    };
    const address = url + pathOf(route, request);
    const triesLeft = routeTags[route.tag].openai ? retries : 0;
    for (let tried = 0; ; tried++) {
      const failure = await send(address, init).then(
        async (response) => (response.ok ? response : refusalOf(response, await response.text())),
        (error: unknown) => {
          if (signal?.aborted === true) throw error;
          return unreachable(url, error);
        },
      );
      if (!(failure instanceof ApiError)) return failure;
      if (tried === triesLeft || !mayPass(failure)) throw failure;
      await pause(pauseSeconds(failure, tried), signal);
    }
  };

  const call = async (route: HttpRoute, request: AnyRequest): Promise<unknown> => {
    const response = await ask(route, request);
    if (route.answer === undefined) return response;
    const text = await response.text().catch((error: unknown) => {
      throw unreachable(url, error);
    });
    const parsed = route.answer.safeParse(parseJson(text));
    if (parsed.success) return parsed.data;
    throw unexpected(url, response.status, parsed.error);
  };

  async function* stream(id: OperationId, request: AnyRequest): AsyncGenerator<unknown, void, undefined> {
    const route: HttpRoute = httpRoutes[id];
    const response = await ask(route, { ...request, body: { ...(request.body as object), stream: true } });
    const events = response.body?.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream());
    if (events === undefined || route.event === undefined) throw unexpected(url, response.status, undefined);
    for await (const { data } of itemsOf(events, (error) => (request.signal?.aborted === true ? error : unreachable(url, error)))) {
      if (data === "[DONE]") return;
      const value = parseJson(data);
      if (typeof value === "object" && value !== null && "error" in value) throw refusalOf(response, data);
      const parsed = route.event.safeParse(value);
      if (!parsed.success) throw unexpected(url, response.status, parsed.error);
      yield parsed.data;
    }
  }

  const operations = Object.fromEntries(
    Object.entries<HttpRoute>(httpRoutes).map(([id, route]) => [id, (request: AnyRequest = {}) => call(route, request)]),
  );
  return { url, apiKey, ...operations, stream } as unknown as ApiClient;
}

interface AnyRequest extends CommonFields {
  query?: Record<string, string | number | boolean | undefined>;
  body?: unknown;
}

function pathOf({ path }: HttpRoute, request: AnyRequest): string {
  const filled = path.replaceAll(/\{(\w+)\}/g, (_, name: string) => encodeURIComponent(String((request as Record<string, unknown>)[name])));
  const given = Object.entries(request.query ?? {}).flatMap(([name, value]) => (value === undefined ? [] : [[name, String(value)]]));
  return given.length === 0 ? filled : `${filled}?${new URLSearchParams(given).toString()}`;
}

/** Not every browser can iterate over a stream by itself. @param wordsFor - the error to throw for one of the stream's. */
async function* itemsOf<T>(stream: ReadableStream<T>, wordsFor: (error: unknown) => unknown): AsyncGenerator<T, void, undefined> {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error: unknown) => {
        throw wordsFor(error);
      });
      if (done) return;
      yield value;
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

/** As hex. Browsers have `crypto.randomUUID` on pages from https only, and a console may come from a plain address. */
const randomKey = (): string =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

const mayPass = ({ status }: ApiError): boolean => status === null || [429, 502, 503, 504].includes(status);

/** As long as the server says, within reason; else half a second, and twice as long each further time. */
const pauseSeconds = ({ retryAfter }: ApiError, tried: number): number =>
  retryAfter !== null && retryAfter >= 0 && retryAfter <= 60 ? retryAfter : 0.5 * 2 ** tried;

const pause = (seconds: number, signal: AbortSignal | undefined): Promise<void> =>
  new Promise((resolve, reject) => {
    const stop = (): void => {
      clearTimeout(timer);
      reject(signal?.reason as Error);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, seconds * 1000);
    if (signal?.aborted === true) stop();
    signal?.addEventListener("abort", stop, { once: true });
  });
