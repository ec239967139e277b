import { useEffect, useRef } from "preact/hooks";
import { Glyph } from "../../components/Glyph";
import { healths, isEmpty, MAX_QUERY, states, toggled } from "../../core/filter";
import { availabilities, availabilityWords, count } from "../../format";
import { compact, density, facets, filter, options, setDensity, setFilter, clearFilter, type Density } from "./model";

/** Counts are the numbers by availability; each is a filter. */
export function Counts() {
  const c = facets.value;
  const f = filter.value;
  return (
    <div class="counts" role="group" aria-label="Servers by availability: filters">
      {availabilities.map((a) => (
        <button
          key={a}
          type="button"
          class={`count a-${a}${c.by[a] === 0 ? " count-zero" : ""}`}
          data-availability={a}
          aria-pressed={f.availability.includes(a)}
          onClick={() => setFilter({ availability: toggled(f.availability, a) })}
        >
          <Glyph a={a} />
          <span class="count-number num">{count(c.by[a])}</span>
          <span class="count-word">{availabilityWords[a]}</span>
        </button>
      ))}
      {(c.maintenance > 0 || f.maintenance !== undefined) && (
        <button
          type="button"
          class="count"
          aria-pressed={f.maintenance === true}
          onClick={() => setFilter({ maintenance: f.maintenance === true ? undefined : true })}
        >
          <span class="glyph glyph-plain" aria-hidden="true">
            M
          </span>
          <span class="count-number num">{count(c.maintenance)}</span>
          <span class="count-word">In maintenance</span>
        </button>
      )}
    </div>
  );
}

/** FilterBar searches and narrows. Everything that it does is in the address. */
export function FilterBar() {
  const f = filter.value;
  const o = options.value;
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => {
    // The address may change under the field; what is being typed stays.
    if (input.current && input.current !== document.activeElement) input.current.value = f.q;
  }, [f.q]);
  return (
    <search class="filters">
      <div class="filter-row">
        <div class="search">
          <input
            ref={input}
            id="search"
            type="search"
            aria-label="Search servers"
            aria-keyshortcuts="/"
            placeholder="Search name, host, label, reason"
            maxLength={MAX_QUERY}
            defaultValue={f.q}
            spellcheck={false}
            autocomplete="off"
            onInput={(e) => setFilter({ q: e.currentTarget.value }, true)}
            onKeyDown={(e) => {
              if (e.key !== "Escape" && e.key !== "Enter") return;
              e.preventDefault();
              if (e.key === "Escape" && e.currentTarget.value !== "") {
                e.currentTarget.value = "";
                setFilter({ q: "" }, true);
              } else e.currentTarget.blur();
            }}
          />
          <kbd class="search-key" aria-hidden="true">
            /
          </kbd>
        </div>
        <Choice label="State" words={states} chosen={f.states} set={(v) => setFilter({ states: toggled(f.states, v) })} />
        <Choice label="Health" words={healths} chosen={f.healths} set={(v) => setFilter({ healths: toggled(f.healths, v) })} />
        <Choice
          label="Environment"
          words={o.environments}
          chosen={f.environments}
          set={(v) => setFilter({ environments: toggled(f.environments, v) })}
        />
        <Choice
          label="Label"
          words={o.labels}
          chosen={f.labels.map(([k, v]) => k + "=" + v)}
          set={(v) => {
            const i = v.indexOf("=");
            const k = v.slice(0, i);
            const had = f.labels.some(([x, y]) => x + "=" + y === v);
            const rest = f.labels.filter(([x]) => x !== k); // a label has one value
            setFilter({ labels: had ? rest : [...rest, [k, v.slice(i + 1)]] });
          }}
        />
      </div>
      {!isEmpty(f) && (
        <div class="chosen" role="group" aria-label="Filters that are set">
          {f.q && <Chip words={`“${f.q}”`} off={() => { if (input.current) input.current.value = ""; setFilter({ q: "" }); }} />}
          {f.availability.map((a) => (
            <Chip key={a} words={availabilityWords[a]} off={() => setFilter({ availability: toggled(f.availability, a) })} />
          ))}
          {f.states.map((s) => (
            <Chip key={s} words={"state: " + s} off={() => setFilter({ states: toggled(f.states, s) })} />
          ))}
          {f.healths.map((h) => (
            <Chip key={h} words={"health: " + h} off={() => setFilter({ healths: toggled(f.healths, h) })} />
          ))}
          {f.environments.map((e) => (
            <Chip key={e} words={e} off={() => setFilter({ environments: toggled(f.environments, e) })} />
          ))}
          {f.labels.map(([k, v]) => (
            <Chip key={k} words={k + "=" + v} off={() => setFilter({ labels: f.labels.filter(([x]) => x !== k) })} />
          ))}
          {f.maintenance !== undefined && (
            <Chip words={f.maintenance ? "in maintenance" : "not in maintenance"} off={() => setFilter({ maintenance: undefined })} />
          )}
          <button type="button" class="link" onClick={() => { if (input.current) input.current.value = ""; clearFilter(); }}>
            Clear all
          </button>
        </div>
      )}
    </search>
  );
}

function Chip({ words, off }: { words: string; off: () => void }) {
  return (
    <button type="button" class="chip" onClick={off} aria-label={`Remove the filter ${words}`}>
      <bdi>{words.length > 60 ? words.slice(0, 60) + "…" : words}</bdi>
      <span aria-hidden="true">×</span>
    </button>
  );
}

/** Choice is a list of words of which several may be chosen; choosing again takes one away. */
function Choice<T extends string>(o: { label: string; words: readonly T[]; chosen: readonly string[]; set: (v: T) => void }) {
  return (
    <select
      class={"choice" + (o.chosen.length ? " choice-set" : "")}
      aria-label={"Filter by " + o.label.toLowerCase()}
      value=""
      onChange={(e) => {
        const v = e.currentTarget.value;
        e.currentTarget.value = "";
        if (v !== "") o.set(v as T);
      }}
    >
      <option value="">{o.chosen.length ? `${o.label}: ${o.chosen.length}` : o.label}</option>
      {o.words.map((w) => (
        <option key={w} value={w}>
          {o.chosen.includes(w) ? "✓ " + short(w) : short(w)}
        </option>
      ))}
    </select>
  );
}

const short = (w: string) => (w.length > 60 ? w.slice(0, 60) + "…" : w);

/** DensitySwitch chooses between tiles with names and small ones. */
export function DensitySwitch() {
  const to: Density = compact.value ? "names" : "compact";
  density.value;
  return (
    <button type="button" class="button small" onClick={() => setDensity(to)}>
      {to === "names" ? "Show names" : "Small tiles"}
    </button>
  );
}
