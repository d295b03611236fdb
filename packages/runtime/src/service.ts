/** Frame of a service process: settings, log, telemetry, signals, orderly end. */
import type { z } from "zod";
import { loadEnv } from "./env.ts";
import { createLog, type Log } from "./log.ts";
import { createTelemetry, type Telemetry } from "./telemetry.ts";

export interface ServiceContext<Env> {
  env: Env;
  log: Log;
  telemetry: Telemetry;
}

/** The parts of `process` that a service's `main.ts` hands over; only `main.ts` touches `process`. */
export interface HostProcess {
  env: Record<string, string | undefined>;
  exitCode?: number | string | null | undefined;
  exit(code?: number): never;
  once(signal: "SIGTERM" | "SIGINT", listener: () => void): unknown;
}

export interface ServiceOptions<Schema extends z.ZodType> {
  service: string;
  env: Schema;
  host: HostProcess;
  /** Hard end after a signal; keep it below the pod's grace period. */
  shutdownMs?: number;
  start(context: ServiceContext<z.output<Schema>>): Promise<AsyncDisposable>;
}

/**
 * Starts a service and keeps it until SIGTERM or SIGINT. A failing start says why on one line and exits with 1.
 * JetStream redelivers what was not acknowledged, so the hard deadline loses nothing.
 */
export async function runService<Schema extends z.ZodType>(options: ServiceOptions<Schema>): Promise<void> {
  const { service, host, shutdownMs = 20_000 } = options;
  const log = createLog({ service, level: host.env.LOG_LEVEL ?? "info" });
  try {
    const env = loadEnv(options.env, host.env);
    const telemetry = createTelemetry({
      service,
      spansDir: host.env.LORALINE_SPANS_DIR || undefined, // empty is unset, as for `loadEnv`
      otlpEndpoint: host.env.OTEL_EXPORTER_OTLP_ENDPOINT,
    });
    const running = await options.start({ env, log, telemetry });
    const stop = async (): Promise<void> => {
      log.info("stopping");
      setTimeout(() => {
        log.error({ shutdownMs }, "did not stop in time");
        host.exit(1);
      }, shutdownMs).unref();
      await running[Symbol.asyncDispose]();
      await telemetry[Symbol.asyncDispose]();
      host.exit(0);
    };
    for (const signal of ["SIGTERM", "SIGINT"] as const) {
      host.once(signal, () => {
        stop().catch((error: unknown) => {
          log.error({ err: error }, "stopping failed");
          host.exit(1);
        });
      });
    }
    log.info("ready");
  } catch (error) {
    log.fatal({ err: error }, error instanceof Error ? error.message : String(error));
    host.exit(1);
  }
}
