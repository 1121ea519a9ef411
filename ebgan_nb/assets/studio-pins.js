// A photograph with three points to drag: both eyes and the middle of the mouth.
// Traits: image, alt, width and height (of the full photograph), points (JSON, in its pixels), sent when a point is let go.

const NAMES = ['left eye', 'right eye', 'mouth']
const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}

function render({ model, el }) {
  const box = document.createElement('div'), img = document.createElement('img')
  box.className = 'eb-pins'
  img.draggable = false
  box.append(img)
  el.append(box)

  let points = NAMES.map(() => [0, 0])
  const size = () => [model.get('width'), model.get('height')]
  const show = () => points.forEach(([x, y], k) => { const [w, h] = size(); dots[k].style.left = 100*x/w + '%'; dots[k].style.top = 100*y/h + '%' })
  const move = (k, x, y) => { const [w, h] = size(); points[k] = [Math.min(w, Math.max(0, x)), Math.min(h, Math.max(0, y))]; show() }
  const send = () => { model.set('points', JSON.stringify(points)); model.save_changes() }

  const dots = NAMES.map((name, k) => {
    const dot = document.createElement('button')
    let held = false, moved = false // by the pointer; by keys that are still down
    dot.type = 'button'
    dot.title = `The ${name}: drag it, or press an arrow key`
    dot.setAttribute('aria-label', dot.title)
    dot.onpointerdown = e => { e.preventDefault(); dot.focus({preventScroll: true}); dot.setPointerCapture(e.pointerId); held = true }
    dot.onpointermove = e => {
      if (!held) return
      const b = img.getBoundingClientRect(), [w, h] = size()
      move(k, (e.clientX - b.left)*w/b.width, (e.clientY - b.top)*h/b.height)
    }
    dot.onpointerup = dot.onpointercancel = () => { if (held) { held = false; send() } }
    dot.onkeydown = e => {
      const step = ARROWS[e.key], far = size()[0]/200
      if (!step) return
      e.preventDefault(); e.stopPropagation()
      moved = true
      move(k, points[k][0] + step[0]*far, points[k][1] + step[1]*far)
    }
    dot.onkeyup = () => { if (moved) { moved = false; send() } }
    box.append(dot)
    return dot
  })

  const fresh = () => {
    img.src = model.get('image'); img.alt = model.get('alt')
    if (model.get('points')) points = JSON.parse(model.get('points'))
    show()
  }
  for (const k of ['image', 'points']) model.on('change:' + k, fresh)
  fresh()
  return () => { for (const k of ['image', 'points']) model.off('change:' + k, fresh) }
}

export default { render }
