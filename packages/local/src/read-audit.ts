/** Reads the audit log of every tenant at NATS, for whoever runs the installation: an API key shows its own tenant only. */
import { connectBus, createBus, type NatsAuth } from "@loraline/bus";
import { type AuditFilter, matchesAudit } from "@loraline/contracts";
import { createLog, createTelemetry } from "@loraline/runtime";

/** @throws PermanentError NATS_UNREACHABLE, NATS_UNAUTHORIZED. */
export async function readAudit({
  natsUrl,
  auth,
  before,
  limit,
  ...filter
}: AuditFilter & {
  natsUrl: string;
  auth: NatsAuth;
  before?: number | undefined;
  limit: number;
}) {
  const nc = await connectBus({ servers: natsUrl, name: "loraline audit", ...auth });
  try {
    await using telemetry = createTelemetry({ service: "cli" });
    const { audit } = createBus({ nc, log: createLog({ service: "cli", level: "warn" }), telemetry, source: "cli" });
    const { entries, next } = await audit.page({ before, limit, matches: (entry) => matchesAudit(filter, entry) });
    return { data: entries, next };
  } finally {
    await nc.close();
  }
}
