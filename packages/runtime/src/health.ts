/** Liveness and readiness of a service over HTTP, for Kubernetes' probes and for people with `curl`. */
import { createServer } from "node:http";
import { problemOf } from "./errors.ts";

interface HealthAnswer {
  status: number;
  body: string;
}

export interface Health {
  /** `ask` says what keeps the service from working, in words, or undefined when nothing does. It is asked at every probe. */
  check(name: string, ask: () => string | undefined): void;
  /** One more path that is answered, such as an agent's `/drain`. */
  route(path: string, answer: () => Promise<HealthAnswer>): void;
  /** What keeps it from being ready now, by name; empty when it is. */
  problems(): string[];
}

interface HealthServer extends Health, AsyncDisposable {
  /** Until this is called the service is not ready, whatever the checks say. */
  started(): void;
  port: number | undefined;
}

/**
 * `GET /livez` is answered with 200 while the process can answer at all; `GET /readyz` with 200, or with 503 and a line for each thing
 * that is missing.
 * @param options.port - absent: nothing listens, and only `problems` tells.
 */
export async function createHealth({ port, host = "0.0.0.0" }: { port?: number | undefined; host?: string } = {}): Promise<HealthServer> {
  const checks = new Map<string, () => string | undefined>([["service", () => "is starting"]]);
  const problems = (): string[] =>
    [...checks].flatMap(([name, ask]) => {
      const problem = ask();
      return problem === undefined ? [] : [`${name}: ${problem}`];
    });
  const routes = new Map<string, () => Promise<HealthAnswer>>([
    ["/livez", async () => ({ status: 200, body: "ok" })],
    [
      "/readyz",
      async () => {
        const found = problems();
        return found.length === 0 ? { status: 200, body: "ok" } : { status: 503, body: found.join("\n") };
      },
    ],
  ]);
  const health: Omit<HealthServer, "port" | typeof Symbol.asyncDispose> = {
    check: (name, ask) => void checks.set(name, ask),
    route: (path, answer) => void routes.set(path, answer),
    problems,
    started: () => void checks.delete("service"),
  };
  if (port === undefined) return { ...health, port, async [Symbol.asyncDispose]() {} };

  const server = createServer((request, response) => {
    const answer = routes.get((request.url ?? "").replace(/\?.*$/, ""));
    const answering = answer?.() ?? Promise.resolve({ status: 404, body: `there are ${[...routes.keys()].join(", ")}` });
    answering
      .catch((error: unknown) => ({ status: 500, body: problemOf(error).message }))
      .then(({ status, body }) => response.writeHead(status, { "content-type": "text/plain; charset=utf-8" }).end(`${body}\n`))
      .catch(() => response.destroy());
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, host, resolve);
  });
  return {
    ...health,
    port: (server.address() as { port: number }).port,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}
