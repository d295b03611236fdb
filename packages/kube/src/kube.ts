/**
 * The Kubernetes API in the few verbs that controllers need. Authentication and TLS are the official client's; requests are made
 * here, because its typed classes leave out fields they do not know, and its watch cannot be resumed.
 */
import type { RequestOptions } from "node:https";
import { HttpMethod, KubeConfig, type KubernetesObject, RequestContext } from "@kubernetes/client-node";
import { causesOf, messageOf, RetryLaterError } from "@loraline/runtime";
import { Agent, fetch } from "undici";

/** A kind of object, by its API path. */
export interface Resource<T extends KubernetesObject = KubernetesObject> {
  readonly apiVersion: string;
  readonly kind: string;
  readonly plural: string;
  readonly namespaced: boolean;
  /** Only carries the type. */
  readonly type?: T;
}

export const resource = <T extends KubernetesObject>(apiVersion: string, kind: string, plural: string, namespaced = true): Resource<T> => ({
  apiVersion,
  kind,
  plural,
  namespaced,
});

export interface Address {
  namespace?: string | undefined;
  name: string;
}

/** What the API server answered: `reason` is its word for it, such as `NotFound`, `Conflict`, `Forbidden`, `Invalid`. */
export class KubeError extends Error {
  override readonly name = "KubeError";
  readonly status: number;
  readonly reason: string;
  constructor(status: number, reason: string, message: string) {
    super(message);
    this.status = status;
    this.reason = reason;
  }
}

export interface ListOptions {
  /** Absent: all namespaces. */
  namespace?: string | undefined;
  labelSelector?: string | undefined;
  fieldSelector?: string | undefined;
}

export interface Kube {
  /** undefined: there is none of this name. */
  get<T extends KubernetesObject>(of: Resource<T>, at: Address): Promise<T | undefined>;
  list<T extends KubernetesObject>(of: Resource<T>, options?: ListOptions): Promise<{ items: T[]; resourceVersion: string }>;
  /** @throws KubeError AlreadyExists */
  create<T extends KubernetesObject>(of: Resource<T>, object: T, options?: { dryRun?: boolean }): Promise<T>;
  /**
   * Server-side apply: sets the fields of `object` and owns them under `manager`; fields that were applied before and are left out now
   * go away. Fields that another manager owns are taken over.
   */
  apply<T extends KubernetesObject>(
    of: Resource<T>,
    object: T,
    options: { manager: string; subresource?: "status"; dryRun?: boolean },
  ): Promise<T>;
  /** Replaces it, if it is still the version that `object.metadata.resourceVersion` names. @throws KubeError Conflict */
  replace<T extends KubernetesObject>(of: Resource<T>, object: T): Promise<T>;
  /** Returns true when the object was there. With `uid` only that very object is deleted, not a later one of the same name. */
  delete(
    of: Resource,
    at: Address,
    options?: { uid?: string | undefined; propagation?: "Background" | "Foreground" | "Orphan"; gracePeriodSeconds?: number },
  ): Promise<boolean>;
  /**
   * The events of a watch from `resourceVersion` on, as they come. Ends when the server ends it, or with the signal.
   * @throws KubeError, also one that the server sends inside the stream (410 Expired)
   */
  events<T extends KubernetesObject>(
    of: Resource<T>,
    options: ListOptions & { resourceVersion: string; timeoutSeconds: number; signal: AbortSignal },
  ): AsyncIterable<{ type: "ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK"; object: T }>;
}

interface Ask {
  method: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  path: string;
  query?: Record<string, string | undefined>;
  body?: unknown;
  contentType?: string;
  signal?: AbortSignal;
}

/** Requests that are no watch must be answered within this. */
const answerWithinMs = 30_000;

/** One set of connections is used for this long, then made anew: certificates in files may have been renewed. */
const connectionsMs = 10 * 60_000;

/** @param kubeconfig - path of a kubeconfig; absent: the pod's service account, or what kubectl would use. */
export function createKube({ kubeconfig }: { kubeconfig?: string | undefined } = {}): Kube {
  const config = new KubeConfig();
  if (kubeconfig === undefined) config.loadFromDefault();
  else config.loadFromFile(kubeconfig);
  const server = config.getCurrentCluster()?.server;
  if (server === undefined)
    throw new Error("no Kubernetes cluster is configured: set KUBECONFIG, or run inside a pod with a service account");

  // The client makes connections anew for every request, with a handshake each. Not HTTP/2, whose one connection for everything takes
  // the watches along when it breaks, as an error that nobody can catch (undici 8.13).
  let kept: { agent: Agent; until: number } | undefined;
  const connections = async (): Promise<Agent> => {
    if (kept !== undefined && performance.now() < kept.until) return kept.agent;
    const old = kept?.agent;
    const options: RequestOptions = {};
    await config.applyToHTTPSOptions(options);
    const settings = ["ca", "cert", "key", "pfx", "passphrase", "rejectUnauthorized", "servername"] as const;
    const tls = Object.fromEntries(settings.flatMap((name) => (options[name] === undefined ? [] : [[name, options[name]]])));
    const agent = new Agent({ allowH2: false, connect: { ...tls, keepAlive: true, keepAliveInitialDelay: 30_000 } });
    kept = { agent, until: performance.now() + connectionsMs };
    // The old connections close when their requests, such as watches, have ended.
    old?.close().catch(() => {});
    return agent;
  };

  const send = async ({ method, path, query = {}, body, contentType = "application/json", signal }: Ask) => {
    const url = new URL(server.replace(/\/$/, "") + path);
    for (const [key, value] of Object.entries(query)) if (value !== undefined) url.searchParams.set(key, value);
    const context = new RequestContext(url.toString(), HttpMethod[method]);
    await config.applySecurityAuthentication(context);
    const behindProxy = config.getCurrentCluster()?.proxyUrl !== undefined;
    const dispatcher = behindProxy ? context.getDispatcher() : await connections();
    const answer = fetch(url, {
      method,
      headers: { ...context.getHeaders(), accept: "application/json", ...(body === undefined ? {} : { "content-type": contentType }) },
      body: body === undefined ? null : JSON.stringify(body),
      ...(dispatcher === undefined ? {} : { dispatcher }),
      signal: signal ?? AbortSignal.timeout(answerWithinMs),
    });
    const response = await answer.catch((error: unknown) => {
      // The error itself says only "fetch failed"; its cause says why.
      const why = messageOf([...causesOf(error)].at(-1) ?? error);
      throw new RetryLaterError("KUBERNETES_UNREACHABLE", 5000, `the Kubernetes API at ${server} does not answer: ${why}`, {
        cause: error,
      });
    });
    if (response.ok) return response;
    const text = await response.text();
    throw errorOf(response.status, text);
  };
  const ask = async <T>(request: Ask): Promise<T> => (await (await send(request)).json()) as T;
  const found = async <T>(asking: Promise<T>): Promise<T | undefined> => {
    try {
      return await asking;
    } catch (error) {
      if (error instanceof KubeError && error.status === 404) return undefined;
      throw error;
    }
  };

  return {
    get: (of, at) => found(Promise.try(() => ask({ method: "GET", path: pathOf(of, at) }))),
    async list(of, { namespace, labelSelector, fieldSelector } = {}) {
      const items: never[] = [];
      let next: string | undefined;
      let resourceVersion = "";
      // In pages, so that neither side has to hold all of a large cluster's objects as one text.
      do {
        const page: { items: never[]; metadata: { resourceVersion: string; continue?: string } } = await ask({
          method: "GET",
          path: pathOf(of, { namespace }),
          query: { labelSelector, fieldSelector, limit: "500", continue: next },
        });
        items.push(...page.items);
        resourceVersion = page.metadata.resourceVersion;
        next = page.metadata.continue === "" ? undefined : page.metadata.continue;
      } while (next !== undefined);
      return { items, resourceVersion };
    },
    create: (of, object, { dryRun = false } = {}) =>
      ask({
        method: "POST",
        path: pathOf(of, { namespace: object.metadata?.namespace }),
        query: { dryRun: dryRun ? "All" : undefined },
        body: typed(of, object),
      }),
    apply: (of, object, { manager, subresource, dryRun = false }) =>
      ask({
        method: "PATCH",
        path: pathOf(of, addressOf(object)) + (subresource === undefined ? "" : `/${subresource}`),
        query: { fieldManager: manager, force: "true", dryRun: dryRun ? "All" : undefined },
        body: typed(of, object),
        contentType: "application/apply-patch+yaml",
      }),
    replace: (of, object) => ask({ method: "PUT", path: pathOf(of, addressOf(object)), body: typed(of, object) }),
    async delete(of, at, { uid, propagation = "Background", gracePeriodSeconds } = {}) {
      const body = {
        kind: "DeleteOptions",
        apiVersion: "v1",
        propagationPolicy: propagation,
        ...(gracePeriodSeconds === undefined ? {} : { gracePeriodSeconds }),
        ...(uid === undefined ? {} : { preconditions: { uid } }),
      };
      try {
        return (await found(ask({ method: "DELETE", path: pathOf(of, at), body }))) !== undefined;
      } catch (error) {
        // Another object has the name now, so the one that was to be deleted is gone.
        if (uid !== undefined && error instanceof KubeError && error.status === 409) return false;
        throw error;
      }
    },
    async *events(of, { namespace, labelSelector, fieldSelector, resourceVersion, timeoutSeconds, signal }) {
      // A connection that died silently would be waited for without end, so the watch ends when nothing comes after its own time limit.
      const late = AbortSignal.timeout((timeoutSeconds + 15) * 1000);
      const response = await send({
        method: "GET",
        path: pathOf(of, { namespace }),
        query: {
          watch: "true",
          allowWatchBookmarks: "true",
          resourceVersion,
          labelSelector,
          fieldSelector,
          timeoutSeconds: String(timeoutSeconds),
        },
        signal: AbortSignal.any([signal, late]),
      });
      if (response.body === null) return;
      let rest = "";
      const decoder = new TextDecoder();
      for await (const bytes of response.body as unknown as AsyncIterable<Uint8Array>) {
        const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
        rest = lines.pop() ?? "";
        for (const line of lines) {
          if (line === "") continue;
          const event = JSON.parse(line) as { type: string; object: never };
          if (event.type === "ERROR") throw errorOf((event.object as { code?: number }).code ?? 500, JSON.stringify(event.object));
          yield event as { type: "ADDED"; object: never };
        }
      }
    },
  };
}

const typed = <T extends KubernetesObject>({ apiVersion, kind }: Resource<T>, object: T): T => ({ ...object, apiVersion, kind });

const addressOf = ({ metadata }: KubernetesObject): Address => ({ namespace: metadata?.namespace, name: metadata?.name ?? "" });

function pathOf({ apiVersion, plural, namespaced }: Resource, { namespace, name }: Partial<Address>): string {
  const group = apiVersion.includes("/") ? `/apis/${apiVersion}` : `/api/${apiVersion}`;
  if (name !== undefined && namespaced && namespace === undefined) throw new Error(`a ${plural} has a namespace; name it`);
  // Of all that may be named, these two are not encoded, and a URL that ends with them is another object's.
  if (name === "." || name === "..") throw new KubeError(404, "NotFound", `there are no ${plural} of the name "${name}"`);
  const scope = namespaced && namespace !== undefined ? `/namespaces/${encodeURIComponent(namespace)}` : "";
  return `${group}${scope}/${plural}${name === undefined ? "" : `/${encodeURIComponent(name)}`}`;
}

/** The server's Status object in words; proxies in between answer with other texts. */
function errorOf(status: number, text: string): KubeError {
  let said: { reason?: string; message?: string; code?: number } = {};
  try {
    said = JSON.parse(text) as typeof said;
  } catch {
    // The text is not from the API server.
  }
  return new KubeError(said.code ?? status, said.reason ?? "Unknown", said.message ?? `HTTP ${status}: ${text.slice(0, 200)}`);
}
