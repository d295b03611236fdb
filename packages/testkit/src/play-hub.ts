import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

interface HubOptions {
  /** `organisation/name` of its one model. */
  repo: string;
  commit: string;
  files: Record<string, string | Buffer>;
  /** Address to listen on. Default: loopback. */
  host?: string;
}

/** Plays what huggingface_hub asks of a hub for one model. */
export async function playHub({ repo, commit, files, host = "127.0.0.1" }: HubOptions) {
  const asked: string[] = [];
  const tokens = new Set<string | undefined>();
  let isAway: string | undefined;
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url ?? "/", "http://hub");
    tokens.add(request.headers.authorization);
    const json = (value: unknown): void => void response.setHeader("content-type", "application/json").end(JSON.stringify(value));
    const model = `/api/models/${repo}`;
    if (pathname === model || pathname.startsWith(`${model}/revision/`)) {
      const siblings = Object.keys(files).map((rfilename) => ({ rfilename }));
      json({ id: repo, modelId: repo, sha: commit, siblings, tags: [], private: false, downloads: 0, likes: 0 });
      return;
    }
    if (pathname.startsWith(`${model}/tree/`)) {
      json(Object.entries(files).map(([path, content]) => ({ type: "file", path, size: Buffer.byteLength(content), oid: "a".repeat(40) })));
      return;
    }
    const resolved = `/${repo}/resolve/${commit}/`;
    const name = pathname.startsWith(resolved) ? pathname.slice(resolved.length) : "";
    const content = files[name];
    if (content === undefined || name === isAway) {
      response.writeHead(name === isAway ? 503 : 404, { "x-error-code": "EntryNotFound" }).end();
      return;
    }
    if (request.method === "GET") asked.push(name);
    const etag = Buffer.from(name).toString("hex").padEnd(40, "0").slice(0, 40);
    const length = Buffer.byteLength(content);
    response.writeHead(200, { "x-repo-commit": commit, etag: `"${etag}"`, "content-length": length, "accept-ranges": "bytes" });
    response.end(request.method === "GET" ? content : undefined);
  }).listen(0, host);
  await once(server, "listening");
  return {
    url: `http://${host}:${(server.address() as AddressInfo).port}`,
    /** Files that were sent. */
    asked,
    /** Credentials that were shown. */
    tokens,
    /** From now on a file is not to be had; undefined: every file is. */
    lose: (name: string | undefined) => void (isAway = name),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}
