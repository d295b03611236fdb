/** All adapters: which version answers, and what was made last. */
import type { AdapterState } from "@loraline/contracts";
import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { memo, type ReactNode, useState } from "react";
import { adaptersQuery } from "../data/api.ts";
import { useTexts } from "../texts/texts.tsx";
import { Badge, Card, Page } from "../ui/controls.tsx";
import { Empty, Loaded } from "../ui/states.tsx";

export function Adapters(): ReactNode {
  const t = useTexts();
  const query = useQuery(adaptersQuery);
  const [search, setSearch] = useState("");
  return (
    <Page title={t.adapters.title}>
      <Card>
        <Loaded query={query} lines={5}>
          {({ data }) => {
            if (data.length === 0) return <Empty text={`${t.adapters.empty} ${t.adapters.emptyText}`} />;
            const shown = data.filter(({ adapter: { adapter, base } }) =>
              `${adapter} ${base}`.toLowerCase().includes(search.toLowerCase()),
            );
            return (
              <>
                {data.length > 8 && (
                  <input
                    className="input"
                    type="search"
                    aria-label={t.common.search}
                    placeholder={t.common.search}
                    value={search}
                    onChange={(event) => setSearch(event.target.value)}
                  />
                )}
                {shown.length === 0 && <p className="soft">{t.common.noMatch}</p>}
                <ul className="items">
                  {shown.map(({ adapter }) => (
                    <Item key={adapter.adapter} of={adapter} />
                  ))}
                </ul>
              </>
            );
          }}
        </Loaded>
      </Card>
    </Page>
  );
}

/** Those that stay are not made anew at each letter of a search. */
const Item = memo(function Item({ of: { adapter, base, versions, alias, canary } }: { of: AdapterState }): ReactNode {
  const t = useTexts();
  return (
    <li>
      <span className="grow">
        <Link to="/adapters/$adapter" params={{ adapter }}>
          {adapter}
        </Link>
        <br />
        <span className="small soft">
          {base} · {t.common.versions(versions.length)}
        </span>
      </span>
      {canary && <Badge tone="active">{t.adapters.canaryRuns(canary.version, canary.share)}</Badge>}
      {alias === null ? <Badge tone="plain">{t.adapters.notPromoted}</Badge> : <Badge tone="good">{t.adapters.promotedIs(alias)}</Badge>}
    </li>
  );
});
