/** One connection that outlives its server, and where a process finds it. */
import { readFileSync } from "node:fs";
import {
  type Authenticator,
  connect,
  type ConnectionOptions,
  credsAuthenticator,
  type NatsConnection,
  nkeyAuthenticator,
} from "@nats-io/transport-node";
import { PermanentError, type ServiceContext } from "@loraline/runtime";
import { z } from "zod";
import { streamsInPlace } from "./ensure-streams.ts";
import { spanSink } from "./traces/spans.ts";

/** Settings of a process that speaks NATS: part of its schema for `loadEnv`. */
export const natsEnv = {
  NATS_URL: z
    .string()
    .default("nats://127.0.0.1:4222")
    .describe(
      "One server, or several with commas between: any that answers is asked. tls://…: never without TLS, whatever the server says.",
    ),
  NATS_CA_FILE: z.string().optional().describe("Certificates (PEM) of the authority that the server's certificate is of. Implies TLS."),
  NATS_USER: z.string().optional(),
  NATS_PASS: z.string().optional(),
  NATS_TOKEN: z.string().optional(),
  NATS_CREDS_FILE: z
    .string()
    .optional()
    .describe(
      "Credentials of a user as `nsc` writes them, JWT and NKey in one file; read at each connection, so that a new JWT may take its place.",
    ),
  NATS_NKEY: z
    .string()
    .regex(/^SU[A-Z2-7]{56}$/, "must be the seed of a user's NKey: SU and 56 letters and digits")
    .optional()
    .describe("Seed of a user's NKey, where the server knows users by public keys."),
  LORALINE_SECRET: z
    .string()
    .min(20)
    .optional()
    .describe(
      "A secret of the installation, the same for its gateways, operator and serve: by it they know who gave a command, and gateways keep tenants apart in prefix caches.",
    ),
  NATS_INBOX_PREFIX: z
    .string()
    .optional()
    .describe("Answers come below it; a server with permissions lets each user listen below its own."),
};
export type NatsEnv = z.output<z.ZodObject<typeof natsEnv>>;

/** How a client shows who it is. At most one of: user and password, token, file of credentials, seed of an NKey. */
export interface NatsAuth {
  user?: string | undefined;
  pass?: string | undefined;
  token?: string | undefined;
  credsFile?: string | undefined;
  nkey?: string | undefined;
}

export const natsAuthOf = (env: {
  NATS_USER?: string | undefined;
  NATS_PASS?: string | undefined;
  NATS_TOKEN?: string | undefined;
  NATS_CREDS_FILE?: string | undefined;
  NATS_NKEY?: string | undefined;
}): NatsAuth => ({ user: env.NATS_USER, pass: env.NATS_PASS, token: env.NATS_TOKEN, credsFile: env.NATS_CREDS_FILE, nkey: env.NATS_NKEY });

/**
 * What only this client and its server's operator know: for `createBus`.
 * @throws PermanentError NATS_UNAUTHORIZED when the file of credentials cannot be used
 */
export function natsSecretOf(env: Parameters<typeof natsAuthOf>[0]): string | undefined {
  if (env.NATS_CREDS_FILE === undefined) return env.NATS_PASS ?? env.NATS_NKEY;
  // The seed, because a JWT is made anew from time to time.
  return /^SU[A-Z2-7]{56}$/m.exec(readCreds(env.NATS_CREDS_FILE).toString())?.[0];
}

/** @throws PermanentError NATS_UNAUTHORIZED */
function readCreds(file: string): Buffer {
  const problem = (why: string, cause?: unknown): PermanentError =>
    new PermanentError("NATS_UNAUTHORIZED", `NATS_CREDS_FILE: ${file} ${why}.`, { param: "NATS_CREDS_FILE", cause });
  let text: Buffer;
  try {
    text = readFileSync(file);
  } catch (error) {
    throw problem(`cannot be read (${(error as NodeJS.ErrnoException).code ?? String(error)})`, error);
  }
  if (/BEGIN NATS USER JWT/.test(text.toString()) && /^SU[A-Z2-7]{56}$/m.test(text.toString())) return text;
  throw problem("has no JWT and seed of a user, as `nsc generate creds` writes them");
}

function authenticatorOf({ credsFile, nkey }: NatsAuth): Authenticator | undefined {
  if (credsFile !== undefined) return credsAuthenticator(() => readCreds(credsFile));
  return nkey === undefined ? undefined : nkeyAuthenticator(new TextEncoder().encode(nkey));
}

interface ConnectBusOptions extends NatsAuth {
  servers: string | string[];
  name: string;
  /** File of the authority to trust; absent: those that Node trusts. With it, or with a URL `tls://…`, there is no connection without TLS. */
  caFile?: string | undefined;
  inboxPrefix?: string | undefined;
}

/**
 * Connects to NATS and keeps reconnecting for ever afterwards.
 * @throws PermanentError NATS_UNREACHABLE or NATS_UNAUTHORIZED when the first connection fails.
 */
export async function connectBus({ servers: given, name, caFile, ...auth }: ConnectBusOptions): Promise<NatsConnection> {
  const servers = [given].flat().flatMap((list) => list.split(",").map((url) => url.trim()));
  const tls = caFile !== undefined || servers.some((url) => url.startsWith("tls://"));
  if (auth.credsFile !== undefined) readCreds(auth.credsFile);
  const authenticator = authenticatorOf(auth);
  const options: ConnectionOptions = {
    servers,
    name,
    ...(tls ? { tls: caFile === undefined ? {} : { caFile } } : {}),
    maxReconnectAttempts: -1,
    // Or it would close for good, and its services would go on doing nothing, while a server has no accounts yet.
    ignoreAuthErrorAbort: true,
    reconnectTimeWait: 250,
    reconnectJitter: 250,
    pingInterval: 10_000,
    // Errors name the subject; a stack captured beforehand for each request costs more than the request.
    noAsyncTraces: true,
    ...(authenticator === undefined ? {} : { authenticator }),
    ...(auth.token === undefined ? {} : { token: auth.token }),
    ...(auth.user === undefined ? {} : { user: auth.user }),
    ...(auth.pass === undefined ? {} : { pass: auth.pass }),
    ...(auth.inboxPrefix === undefined ? {} : { inboxPrefix: auth.inboxPrefix }),
  };
  try {
    return await connect(options);
  } catch (error) {
    const where = servers.join(", ");
    const message = error instanceof Error ? error.message : String(error);
    if (/authoriz|credential/i.test(message)) {
      throw new PermanentError(
        "NATS_UNAUTHORIZED",
        `NATS at ${where} refused the credentials of "${name}": ${message}. Check NATS_USER and NATS_PASS, NATS_TOKEN, NATS_CREDS_FILE or NATS_NKEY: whichever it takes.`,
        { cause: error },
      );
    }
    const todo = /certificate|self.signed|altname/i.test(message)
      ? "Set NATS_CA_FILE to the authority of its certificate, which must name this host."
      : /'tls'/.test(message)
        ? "NATS_URL or NATS_CA_FILE asks for TLS: give the server a certificate."
        : "Is it running, and is NATS_URL right?";
    throw new PermanentError("NATS_UNREACHABLE", `cannot reach NATS at ${where}: ${message}. ${todo}`, { cause: error });
  }
}

/** Sends what was published already, then closes. When the server is away it only closes, and does not fail. */
export const leave = (nc: NatsConnection): Promise<void> => nc.drain().catch(() => nc.close());

/** `connectBus` with the settings of `natsEnv`; `name` is what the server shows. */
export const connectFromEnv = (env: NatsEnv, name: string): Promise<NatsConnection> =>
  connectBus({
    servers: env.NATS_URL,
    name,
    caFile: env.NATS_CA_FILE,
    ...natsAuthOf(env),
    inboxPrefix: env.NATS_INBOX_PREFIX,
  });

/**
 * `connectFromEnv` for a service that may start before its servers: waits for NATS, and until the streams are in place, and logs what it
 * waits for. Once connected, readiness follows the connection.
 * @throws PermanentError NATS_UNAUTHORIZED at once: waiting does not mend credentials.
 */
export async function connectService(
  env: NatsEnv,
  name: string,
  { log, health, stopping, keepSpans }: Omit<ServiceContext<unknown>, "env" | "telemetry">,
): Promise<NatsConnection> {
  let problem: string | undefined = `connecting to ${env.NATS_URL}`;
  health.check("nats", () => problem);
  const untilThere = async <T>(ask: () => Promise<T | undefined>): Promise<T> => {
    for (let lastProblem: string | undefined; ;) {
      const given = await ask().catch((error: unknown) => {
        if (!(error instanceof PermanentError) || error.code !== "NATS_UNREACHABLE") throw error;
        problem = error.message;
      });
      if (given !== undefined) return given;
      if (problem !== lastProblem) log.warn(`waiting: ${problem}`);
      lastProblem = problem;
      if (stopping.aborted) throw new PermanentError("STOPPED", `asked to stop while waiting: ${problem}`);
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  };
  const nc = await untilThere(() => connectFromEnv(env, name));
  await untilThere(async () => {
    problem = await streamsInPlace(nc);
    return problem === undefined ? true : undefined;
  }).catch(async (error: unknown) => {
    await nc.close();
    throw error;
  });
  keepSpans(spanSink(nc));
  (async () => {
    for await (const { type } of nc.status()) {
      if (type === "disconnect" || type === "staleConnection") problem = `the connection to ${env.NATS_URL} is lost; connecting again`;
      if (type === "reconnect") problem = undefined;
    }
  })().catch((error: unknown) => log.warn({ err: error }, "the state of the connection is not followed any more"));
  return nc;
}
