/** Pure: NATS' accounts and users, the same as those of the chart (helm/loraline/templates/nats.yaml). */
import { natsPermissions } from "@loraline/contracts";

interface NatsAccountsOptions {
  /** Each has an account of its own, which imports its commands and events. */
  tenants: readonly string[];
  /** Users of the account LORALINE beside the services' that may do everything. */
  administrators?: readonly string[];
  passwordOf(user: string): string;
}

/** The account to which all streams belong. */
export const mainAccount = "LORALINE";
/** Account and user of a tenant's own client. */
export const natsUserOf = (tenant: string): string => `tenant.${tenant}`;

/** @returns the value of `accounts` in the server's configuration. */
export function natsAccounts({ tenants, administrators = [], passwordOf }: NatsAccountsOptions): Record<string, object> {
  const may = (tenant: string) =>
    JSON.parse(JSON.stringify(natsPermissions.tenant).replaceAll("{tenant}", tenant)) as typeof natsPermissions.tenant;
  const events = (tenant: string): string => `loraline.${tenant}.>`;
  return {
    [mainAccount]: {
      jetstream: "enabled",
      users: [
        ...Object.entries(natsPermissions.services).map(([user, permissions]) => ({ user, password: passwordOf(user), permissions })),
        ...administrators.map((user) => ({ user, password: passwordOf(user) })),
      ],
      exports: tenants.flatMap((tenant) => [
        { stream: events(tenant), accounts: [natsUserOf(tenant)] },
        ...may(tenant).publish.allow.map((service) => ({ service, accounts: [natsUserOf(tenant)] })),
      ]),
    },
    ...Object.fromEntries(
      tenants.map((tenant) => [
        natsUserOf(tenant),
        {
          users: [{ user: natsUserOf(tenant), password: passwordOf(natsUserOf(tenant)), permissions: may(tenant) }],
          imports: [
            { stream: { account: mainAccount, subject: events(tenant) } },
            ...may(tenant).publish.allow.map((subject) => ({ service: { account: mainAccount, subject } })),
          ],
        },
      ]),
    ),
  };
}
