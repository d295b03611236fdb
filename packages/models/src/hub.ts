/** The two requests to the model hub that Loraline needs: the list of a repository's files at a revision, and a file's bytes. */
import { z } from "zod";
import { type GuardedFetch, PermanentError } from "@loraline/runtime";

interface HubRepository {
  /** Base URL of the hub (`HF_ENDPOINT`). */
  endpoint: string;
  kind: "datasets" | "models";
  /** `organisation/name`, or a name alone. */
  name: string;
  /** Branch, tag or commit. */
  revision: string;
  /** Sent to the hub only. */
  token?: string | undefined;
}

interface HubFile {
  path: string;
  /** Bytes. */
  size: number;
  /** Hex sha256. Only files outside of Git have it, which all large ones are. */
  sha256: string | undefined;
}

export const defaultHubEndpoint = "https://huggingface.co";

/** `organisation/name` or `name`, as the hub allows them. */
const hubName = /^(?:[\w-][\w.-]{0,95}\/)?[\w-][\w.-]{0,95}$/;

const answerBytes = 8 * 1024 * 1024;
const answerMs = 60_000;
const mostPages = 20;

const commit = z.object({ sha: z.string().regex(/^[0-9a-f]{40,64}$/) });
const tree = z.array(
  z.object({
    type: z.string(),
    path: z.string(),
    size: z.int().nonnegative().default(0),
    lfs: z.object({ oid: z.string() }).nullish(),
  }),
);

/** Headers for the hub's own origin. */
export const hubHeaders = ({ token }: Pick<HubRepository, "token">): Record<string, string> =>
  token === undefined ? {} : { authorization: `Bearer ${token}` };

/**
 * Finds the commit of a revision and lists its files, so that all files are read from one state.
 * @throws PermanentError HUB_NAME_INVALID, HUB_NOT_FOUND, HUB_ANSWER_INVALID, HUB_TOO_MANY_FILES, and what `GuardedFetch.get` throws.
 */
export async function listHubFiles(
  fetch: GuardedFetch,
  repository: HubRepository,
  signal?: AbortSignal,
): Promise<{ commit: string; files: HubFile[] }> {
  const { endpoint, kind, name, revision } = repository;
  if (!hubName.test(name)) {
    throw new PermanentError("HUB_NAME_INVALID", `"${name.slice(0, 200)}" is not a name on the hub; one is "organisation/name".`, {
      param: "hub",
    });
  }
  const api = `${endpoint.replace(/\/+$/, "")}/api/${kind}/${name}`;
  const ask = async (url: string): Promise<{ value: unknown; next: string | undefined }> => {
    const { body, headers } = await fetch
      .get(url, {
        maxBytes: answerBytes,
        timeoutMs: answerMs,
        headers: hubHeaders(repository),
        ...(signal === undefined ? {} : { signal }),
      })
      .catch((error: unknown) => {
        if (!(error instanceof PermanentError) || error.code !== "FETCH_REFUSED") throw error;
        const what = `the hub has no ${kind === "datasets" ? "dataset" : "model"} "${name}" with a revision "${revision}" that may be read`;
        throw new PermanentError("HUB_NOT_FOUND", `${what} (${error.message})`, { param: "hub", cause: error });
      });
    const parts: Uint8Array[] = [];
    for await (const part of body) parts.push(part);
    const next = /<([^>]+)>\s*;\s*rel="next"/.exec(String(headers.link ?? ""))?.[1];
    try {
      return { value: JSON.parse(Buffer.concat(parts).toString("utf8")), next };
    } catch (cause) {
      throw invalid(endpoint, cause);
    }
  };
  const parse = <T extends z.ZodType>(schema: T, value: unknown): z.output<T> => {
    const parsed = schema.safeParse(value);
    if (!parsed.success) throw invalid(endpoint, parsed.error);
    return parsed.data;
  };
  const { sha } = parse(commit, (await ask(`${api}/revision/${encodeURIComponent(revision)}`)).value);
  const files: HubFile[] = [];
  let url: string | undefined = `${api}/tree/${sha}?recursive=true`;
  for (let pages = 0; url !== undefined; pages++) {
    if (pages === mostPages) {
      throw new PermanentError("HUB_TOO_MANY_FILES", `"${name}" has too many files to be listed. Name the one that is meant.`, {
        param: "hub",
      });
    }
    const { value, next } = await ask(url);
    for (const { type, path, size, lfs } of parse(tree, value)) {
      if (type === "file") files.push({ path, size, sha256: /^[0-9a-f]{64}$/.exec(lfs?.oid ?? "")?.[0] });
    }
    // The token is sent to the next page only if that is the hub's too: a header may name any address.
    url = next === undefined ? undefined : new URL(next, url).href;
    if (url !== undefined && new URL(url).origin !== new URL(api).origin) throw invalid(endpoint, undefined);
  }
  return { commit: sha, files };
}

const invalid = (endpoint: string, cause: unknown): PermanentError =>
  new PermanentError("HUB_ANSWER_INVALID", `${endpoint} does not answer as a model hub does. Check HF_ENDPOINT.`, { cause });

/** @returns the address of a file's bytes. */
export function hubFileUrl({ endpoint, kind, name, revision }: HubRepository, path: string): string {
  const file = path.split("/").map(encodeURIComponent).join("/");
  return `${endpoint.replace(/\/+$/, "")}/${kind === "datasets" ? "datasets/" : ""}${name}/resolve/${encodeURIComponent(revision)}/${file}`;
}
