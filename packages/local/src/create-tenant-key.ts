/** Makes the first key of a tenant at NATS, because nobody has a key yet to ask a gateway with. */
import { connectBus, createBus, type NatsAuth } from "@loraline/bus";
import { type Scope, scopes as allScopes, tenantName } from "@loraline/contracts";
import { createOperatorKey } from "@loraline/gateway";
import { createLog, createTelemetry, PermanentError } from "@loraline/runtime";

/** @returns the key. @throws PermanentError TENANT_INVALID, BOUND_ADMIN, NATS_UNREACHABLE, BUCKET_MISSING. */
export async function createTenantKey({
  natsUrl,
  auth = {},
  tenant,
  name,
  scopes,
  models,
  expiresAt,
}: {
  natsUrl: string;
  auth?: NatsAuth;
  tenant: string;
  name: string;
  scopes?: readonly Scope[] | undefined;
  models?: readonly string[] | undefined;
  expiresAt?: string | undefined;
}): Promise<string> {
  const parsed = tenantName.safeParse(tenant);
  if (!parsed.success) {
    throw new PermanentError("TENANT_INVALID", `"${tenant}" is no tenant's name: ${parsed.error.issues[0]?.message}.`, {
      param: "--tenant",
    });
  }
  if (models !== undefined && (scopes ?? allScopes).includes("admin")) {
    throw new PermanentError("BOUND_ADMIN", "a key with the scope admin cannot be bound to models. Give --scopes without admin.", {
      param: "--models",
    });
  }
  const nc = await connectBus({ servers: natsUrl, name: "loraline keys", ...auth });
  try {
    const log = createLog({ service: "cli", level: "warn" });
    await using telemetry = createTelemetry({ service: "cli" });
    const bus = createBus({ nc, log, telemetry, source: "cli" });
    return await createOperatorKey(
      { bus },
      {
        tenant,
        name,
        by: auth.user ?? "nats",
        ...(scopes === undefined ? {} : { scopes }),
        ...(models === undefined ? {} : { models }),
        ...(expiresAt === undefined ? {} : { expiresAt }),
      },
    );
  } finally {
    await nc.close();
  }
}
