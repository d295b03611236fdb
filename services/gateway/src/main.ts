/** The gateway as a process of its own, with the projector. */
import { type Bus, joinBus, natsEnv, quotasEnv, readKeptSpans } from "@loraline/bus";
import { tenantName } from "@loraline/contracts";
import { objectsEnv, objectsFromEnv } from "@loraline/objects";
import { allowListOf, PermanentError, readSpans, runService } from "@loraline/runtime";
import { z } from "zod";
import { accessLogs } from "./access-log.ts";
import { createOperatorKey } from "./access/auth.ts";
import type { OidcOptions } from "./access/oidc.ts";
import { createProjector } from "./projector.ts";
import { createGatewayService } from "./service.ts";

/** What browsers send as `Origin`: no path, and no slash at the end. */
const corsOrigins = z
  .string()
  .transform((text) => text.split(",").map((origin) => origin.trim()))
  .pipe(
    z.array(
      z
        .string()
        .refine(
          (origin) => origin === "*" || (URL.canParse(origin) && new URL(origin).origin === origin),
          "must be * or origins such as https://app.example.com: scheme, host and perhaps port, without a path or a slash at the end",
        ),
    ),
  );
const bytes = z.coerce.number().int().positive();

await runService({
  service: "gateway",
  host: process,
  env: z.object({
    ...natsEnv,
    ...objectsEnv,
    ...quotasEnv,
    HOST: z.string().default("0.0.0.0"),
    PORT: z.coerce.number().int().min(0).max(65_535).default(8080),
    TLS_CERT_FILE: z.string().optional().describe("Certificate (PEM), with TLS_KEY_FILE: the API is then served by https."),
    TLS_KEY_FILE: z.string().optional(),
    UPLOAD_LIMIT_BYTES: bytes.optional(),
    BODY_LIMIT_BYTES: bytes.optional(),
    LORALINE_SPANS_DIR: z.string().optional(),
    LORALINE_TRACES: z.enum(["nats"]).optional(),
    ACCESS_LOG: z.enum(accessLogs).default("all").describe("Which answers are logged: all, those of 400 and above (errors), none."),
    /** Default: all of them where spans go anywhere, else none. */
    TRACE_CHAT_SHARE: z.coerce.number().min(0).max(1).optional(),
    OTEL_EXPORTER_OTLP_ENDPOINT: z.string().optional(),
    ENGINE_API_KEY: z.string().optional().describe("What engines were started with as VLLM_API_KEY."),
    REPLICA_HOSTS: z
      .string()
      .optional()
      .describe(
        "Which addresses replicas may have, separated by commas: loopback, private, 10.4.0.0/16, *.engines.default.svc, each with or without :PORT.",
      ),
    CORS_ORIGINS: corsOrigins.optional().describe("Origins of web pages that may call the API, separated by commas; `*`: all."),
    NATS_TENANTS: z
      .string()
      .default("")
      .transform((text) => text.split(",").filter((name) => name !== ""))
      .pipe(z.array(tenantName))
      .describe("Tenants whose own clients give commands over NATS, separated by commas."),
    HF_ENDPOINT: z.url().optional(),
    HF_TOKEN: z.string().optional(),
    /** host:port, separated by commas: internal hosts that adapters may be fetched from. */
    LORALINE_IMPORT_ALLOW: z.string().optional(),
    BOOTSTRAP_TENANT: tenantName.optional(),
    BOOTSTRAP_API_KEY: z
      .string()
      .min(20, "is too short for a key that may do everything")
      .optional()
      .describe(
        "A key of BOOTSTRAP_TENANT with every scope: the first one, that others are made with. Revoked once, it stays revoked: set another one.",
      ),
    OIDC_ISSUER: z.url().optional(),
    OIDC_AUDIENCE: z.string().optional(),
    OIDC_TENANT_CLAIM: z.string().optional(),
    OIDC_SCOPE_CLAIM: z.string().optional(),
    OIDC_CLOCK_TOLERANCE_S: z.coerce.number().min(0).max(600).optional(),
    OIDC_TOKEN_TYPES: z.string().optional().describe("What tokens' `typ` may be, separated by commas; `none`: it may be absent."),
    OIDC_MAX_TOKEN_S: z.coerce.number().int().min(60).optional().describe("Longest time from a token's `iat` to its `exp`."),
    OIDC_CLIENT_ID: z.string().optional().describe("As the issuer knows the console: people may then sign in there."),
    OIDC_CLIENT_SECRET: z.string().optional().describe("Absent: a public client."),
    OIDC_SCOPES: z.string().optional().describe("What the console asks the issuer for, beside `openid`, with spaces between."),
    OIDC_PARAMETERS: z.string().optional().describe("More of the question, as in an address: `resource=https://loraline.example.com`."),
    CONSOLE_ORIGIN: z.url().optional().describe("Origin under which people open the console, where a proxy changes `Host`."),
    OIDC_KEY_MAX_DAYS: z.coerce.number().positive().max(3660).optional().describe("Longest lifetime of a key that is made with a token."),
    KEY_MAX_DAYS: z.coerce.number().positive().max(3660).optional().describe("Longest lifetime of every key that is made over HTTP."),
  }),
  async start({ env, log, telemetry, ...service }) {
    const running = new AsyncDisposableStack();
    const { nc, bus } = running.use(await joinBus({ env, log, telemetry, ...service }, "gateway"));
    // Stays ready while NATS does not answer: it can answer from what it knows, and without it requests would be refused.
    service.health.check("nats", () => undefined);
    const objects = running.use(await objectsFromEnv(env, nc, { log }));
    running.use(await createProjector({ bus, log, metrics: telemetry.metrics }));
    await bootstrap(env, bus);
    const { LORALINE_SPANS_DIR: spansDir, UPLOAD_LIMIT_BYTES: uploadLimitBytes, BODY_LIMIT_BYTES: bodyLimitBytes } = env;
    const gateway = await createGatewayService({
      oidc: oidcOf(env),
      oidcSignIn:
        env.OIDC_ISSUER === undefined || env.OIDC_CLIENT_ID === undefined
          ? undefined
          : {
              issuer: env.OIDC_ISSUER,
              clientId: env.OIDC_CLIENT_ID,
              clientSecret: env.OIDC_CLIENT_SECRET,
              scopes: env.OIDC_SCOPES,
              parameters: env.OIDC_PARAMETERS,
              origin: env.CONSOLE_ORIGIN,
            },
      quotas: env.LORALINE_QUOTAS,
      keyLifetimes: {
        days: env.KEY_MAX_DAYS,
        ...(env.OIDC_KEY_MAX_DAYS === undefined ? {} : { oidcDays: env.OIDC_KEY_MAX_DAYS }),
      },
      imports: {
        allow: allowListOf(env.LORALINE_IMPORT_ALLOW),
        hubToken: env.HF_TOKEN,
        ...(env.HF_ENDPOINT === undefined ? {} : { hubEndpoint: env.HF_ENDPOINT }),
      },
      accessLog: env.ACCESS_LOG,
      // A collector samples by itself, and what is kept here is kept for everybody.
      ...(env.OTEL_EXPORTER_OTLP_ENDPOINT === undefined && spansDir === undefined ? { tracesPerMinute: 120 } : {}),
      chatTraceShare: env.TRACE_CHAT_SHARE ?? (spansDir === undefined && env.OTEL_EXPORTER_OTLP_ENDPOINT === undefined ? 0 : 1),
      bus,
      natsTenants: env.NATS_TENANTS,
      objects,
      log,
      telemetry,
      engineKey: env.ENGINE_API_KEY,
      secret: env.LORALINE_SECRET,
      replicaHosts: env.REPLICA_HOSTS?.split(",").map((host) => host.trim()),
      corsOrigins: env.CORS_ORIGINS,
      host: env.HOST,
      port: env.PORT,
      tls: tlsOf(env),
      ...(spansDir !== undefined
        ? { readTrace: (traceId: string) => readSpans(spansDir, traceId) }
        : env.LORALINE_TRACES === undefined
          ? {}
          : { readTrace: (traceId: string) => readKeptSpans(nc, traceId) }),
      ...(uploadLimitBytes === undefined ? {} : { uploadLimitBytes }),
      ...(env.SPOOL_DIR === undefined ? {} : { spoolDir: env.SPOOL_DIR }),
      ...(bodyLimitBytes === undefined ? {} : { bodyLimitBytes }),
    });
    running.use(gateway);
    return running;
  },
});

/** @throws PermanentError SETTING_MISSING if a key is given without its tenant. */
async function bootstrap(
  { BOOTSTRAP_TENANT: tenant, BOOTSTRAP_API_KEY: key }: { BOOTSTRAP_TENANT?: string | undefined; BOOTSTRAP_API_KEY?: string | undefined },
  bus: Pick<Bus, "bucket" | "audit">,
): Promise<void> {
  if (key === undefined) return;
  if (tenant === undefined) {
    throw new PermanentError("SETTING_MISSING", "BOOTSTRAP_API_KEY is set, but BOOTSTRAP_TENANT is not: say whose key it is.", {
      param: "BOOTSTRAP_TENANT",
    });
  }
  await createOperatorKey({ bus }, { tenant, name: "bootstrap", key, by: "bootstrap" });
}

/** @throws PermanentError SETTING_MISSING if there is a certificate without its key, or a key without its certificate. */
function tlsOf({
  TLS_CERT_FILE: certFile,
  TLS_KEY_FILE: keyFile,
}: {
  TLS_CERT_FILE?: string | undefined;
  TLS_KEY_FILE?: string | undefined;
}) {
  if (certFile !== undefined && keyFile !== undefined) return { certFile, keyFile };
  if (certFile === undefined && keyFile === undefined) return undefined;
  const missing = certFile === undefined ? "TLS_CERT_FILE" : "TLS_KEY_FILE";
  throw new PermanentError("SETTING_MISSING", `${missing} is not set: https needs a certificate and its key.`, { param: missing });
}

/** @throws PermanentError SETTING_MISSING if an issuer is given without an audience, because tokens for other servers would be accepted. */
function oidcOf(env: {
  OIDC_ISSUER?: string | undefined;
  OIDC_AUDIENCE?: string | undefined;
  OIDC_TENANT_CLAIM?: string | undefined;
  OIDC_SCOPE_CLAIM?: string | undefined;
  OIDC_CLOCK_TOLERANCE_S?: number | undefined;
  OIDC_TOKEN_TYPES?: string | undefined;
  OIDC_MAX_TOKEN_S?: number | undefined;
}): OidcOptions | undefined {
  const { OIDC_ISSUER: issuer, OIDC_AUDIENCE: audience } = env;
  if (issuer === undefined) return undefined;
  if (audience === undefined) {
    throw new PermanentError("SETTING_MISSING", "OIDC_ISSUER is set, but OIDC_AUDIENCE is not: set what the tokens' `aud` must hold.", {
      param: "OIDC_AUDIENCE",
    });
  }
  const { OIDC_TENANT_CLAIM: tenantClaim, OIDC_SCOPE_CLAIM: scopeClaim, OIDC_CLOCK_TOLERANCE_S: clockToleranceS } = env;
  const { OIDC_TOKEN_TYPES: types, OIDC_MAX_TOKEN_S: longestTokenS } = env;
  const tokenTypes = types?.split(",").map((type) => type.trim());
  return { issuer, audience, tenantClaim, scopeClaim, clockToleranceS, tokenTypes, longestTokenS };
}
