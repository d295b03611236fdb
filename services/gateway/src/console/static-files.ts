/** `/console`: the built pages, from memory. No path of a request ever becomes a path of the file system. */
import { readdir, readFile } from "node:fs/promises";
import { extname, join, relative, sep } from "node:path";
import { promisify } from "node:util";
import { brotliCompress, constants, gzip } from "node:zlib";
import { PermanentError } from "@loraline/runtime";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";

/** Where `make setup` builds it, and where it is in the image. */
export const builtConsole = join(import.meta.dirname, "../../../../packages/console/dist");

const types: Readonly<Record<string, string>> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".svg": "image/svg+xml",
  ".json": "application/json",
  ".woff2": "font/woff2",
};

/** Scripts, styles and requests of this server only; no page of another one may frame it. */
const securityHeaders = {
  "content-security-policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "permissions-policy": "camera=(), microphone=(), geolocation=()",
};

const compress = {
  br: (bytes: Buffer) => promisify(brotliCompress)(bytes, { params: { [constants.BROTLI_PARAM_QUALITY]: 9 } }),
  gzip: (bytes: Buffer) => promisify(gzip)(bytes),
};
type Encoding = keyof typeof compress;

interface File {
  bytes: Buffer;
  type: string;
  /** Its name holds the hash of its bytes. */
  isHashed: boolean;
  packed: Partial<Record<Encoding, Promise<Buffer>>>;
}

/** @param dir - absent files are no error before somebody asks for the console. */
export async function consoleRoutes(dir: string): Promise<(app: FastifyInstance) => void> {
  const files = new Map<string, File>();
  const found = await readdir(dir, { recursive: true, withFileTypes: true }).catch(() => []);
  for (const entry of found.filter((one) => one.isFile())) {
    const path = join(entry.parentPath, entry.name);
    const name = relative(dir, path).split(sep).join("/");
    const type = types[extname(name)];
    if (type === undefined) continue;
    files.set(name, { bytes: await readFile(path), type, isHashed: name.startsWith("assets/"), packed: {} });
  }

  const send = async (name: string, request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> => {
    // Pages have addresses of their own inside the console, which are no files; what looks like a file and is none is an error.
    const file = files.get(name) ?? (name.startsWith("assets/") || /\.\w{1,5}$/.test(name) ? undefined : files.get("index.html"));
    if (file === undefined) {
      if (files.size > 0) throw new PermanentError("not_found", `The console has no file ${name}.`, { status: 404 });
      throw new PermanentError("console_missing", "This server has no console: its files were not built. (Operator: run `make setup`.)", {
        status: 404,
      });
    }
    void reply.headers(securityHeaders).header("vary", "accept-encoding").type(file.type);
    void reply.header("cache-control", file.isHashed ? "public, max-age=31536000, immutable" : "no-cache");
    const accepted = String(request.headers["accept-encoding"] ?? "");
    const encoding = (["br", "gzip"] as const).find((one) => accepted.includes(one));
    if (encoding === undefined || file.bytes.length < 1024) return reply.send(file.bytes);
    file.packed[encoding] ??= compress[encoding](file.bytes);
    return reply.header("content-encoding", encoding).send(await file.packed[encoding]);
  };
  return (app) => {
    app.get("/console", (request, reply) => send("index.html", request, reply));
    app.get("/console/*", (request, reply) => send((request.params as { "*": string })["*"] || "index.html", request, reply));
  };
}
