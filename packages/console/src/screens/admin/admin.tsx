/** Keys, limits, usage, audit log and failed messages of one's own tenant. */
import { useQuery } from "@tanstack/react-query";
import { Link, useSearch } from "@tanstack/react-router";
import type { ReactNode } from "react";
import { can, sessionQuery } from "../../data/api.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Page } from "../../ui/controls.tsx";
import { Audit } from "./audit.tsx";
import { FailedMessages } from "./failed-messages.tsx";
import { Keys } from "./keys.tsx";
import { Limits } from "./limits.tsx";
import { Usage } from "./usage.tsx";

const tabs = { keys: Keys, limits: Limits, usage: Usage, audit: Audit, failed: FailedMessages } as const;

export function Administration(): ReactNode {
  const t = useTexts();
  const { data: session } = useQuery(sessionQuery);
  const { tab } = useSearch({ from: "/admin" });
  const current = (Object.keys(tabs) as (keyof typeof tabs)[]).find((one) => one === tab) ?? "keys";
  const Tab = tabs[current];
  return (
    <Page title={t.admin.title}>
      {can(session, "admin") ? (
        <>
          <nav className="tabs" aria-label={t.admin.title}>
            {(Object.keys(tabs) as (keyof typeof tabs)[]).map((one) => (
              <Link key={one} to="/admin" search={{ tab: one }} aria-current={one === current ? "page" : undefined}>
                {t.admin.tabs[one]}
              </Link>
            ))}
          </nav>
          <Tab />
        </>
      ) : (
        <p className="note">{t.common.noScope("admin")}</p>
      )}
    </Page>
  );
}
