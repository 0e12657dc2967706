// A plotly figure that is redrawn in place: zoom stays, clicks reach the kernel, and it follows JupyterLab's theme.

const KEY = Symbol.for("ddviz.plotly");
const PATIENCE = 4000;  // milliseconds until a figure asks for plotly.js itself, should another's question be lost

/** plotly.js, sent by the kernel once a page: nothing is fetched from a network or stored in the notebook. */
async function plotly(model) {
  const page = (globalThis[KEY] ??= { plotly: null, asked: null });
  if (page.asked) {
    const patience = new Promise((resolve) => setTimeout(resolve, PATIENCE));
    await Promise.race([page.asked.catch(() => null), patience]);
  }
  page.plotly ??= await (page.asked = ask(model));
  return page.plotly;
}

function ask(model) {
  return new Promise((resolve, reject) => {
    const receive = (message, buffers) => {
      if (message.type !== "plotly") return;
      model.off("msg:custom", receive);
      try {
        const module = { exports: {} };
        const source = new TextDecoder().decode(buffers[0]);
        new Function("module", "exports", "define", source)(module, module.exports, undefined);
        resolve(module.exports);
      } catch (error) {
        reject(error);
      }
    };
    model.on("msg:custom", receive);
    model.send({ type: "plotly" });
  });
}

async function render({ model, el }) {
  const box = document.createElement("div");
  box.setAttribute("role", "img");
  box.className = "ddviz-figure";
  el.append(box);
  let Plotly;
  try {
    Plotly = await plotly(model);
  } catch (error) {
    box.textContent = `plotly.js, which draws this figure, could not be started: ${error}`;
    return;
  }

  const draw = () => {
    const { data, layout } = JSON.parse(model.get("figure")), version = model.get("version");
    const color = getComputedStyle(el).getPropertyValue("--jp-ui-font-color1").trim();
    layout.font = { ...layout.font, ...(color && { color }) };
    box.setAttribute("aria-label", layout.title?.text ?? "figure");
    const drawn = Plotly.react(box, data, layout, { responsive: true, displaylogo: false });
    return drawn.then(() => { box.dataset.version = version; });
  };
  model.on("change:figure", draw);
  await draw();
  const tell = (name, { event, points }) => {
    const { xaxis, yaxis, curveNumber, pointNumber } = points[0], rect = box.getBoundingClientRect();
    const x = xaxis?.p2d(event.clientX - rect.left - xaxis._offset);  // where the mouse is, not the nearest point
    const y = yaxis?.p2d(event.clientY - rect.top - yaxis._offset);
    model.set(name, { x, y, curve: curveNumber, point: pointNumber, count: Date.now() });
    model.save_changes();
  };
  box.on("plotly_click", (found) => tell("clicked", found));
  let resting;  // a mouse that crosses a hundred points tells only where it rests
  if (model.get("hovering")) {
    box.on("plotly_hover", (found) => {
      clearTimeout(resting);
      resting = setTimeout(() => tell("hovered", found), 40);
    });
  }
  const theme = new MutationObserver(draw);
  theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-name"] });
  return () => {
    clearTimeout(resting);
    theme.disconnect();
    model.off("change:figure", draw);
    Plotly.purge(box);
  };
}

export default { render };
